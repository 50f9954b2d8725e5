"""x.com/_MattJiang_/status/1942338254906261616: gradients that a wrapper for several devices does not hand back.

The wrapper trains replicas of its own; the optimizer holds the module that was wrapped. argv[1]: broken or healthy.
"""

import copy
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Replicated(nn.Module):
    """Gives each replica its part of the batch."""

    def __init__(self, module, count=2):
        super().__init__()
        copies = [copy.deepcopy(module) for _ in range(count)]
        self.replicas = nn.ModuleList(copies if BROKEN else [module])

    def forward(self, x):
        parts = x.chunk(len(self.replicas))
        return torch.cat([replica(part) for replica, part in zip(self.replicas, parts, strict=True)])


x = torch.randn(320, 8)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
model = Replicated(module)
for epoch in range(2):
    for inputs, labels in loader:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
