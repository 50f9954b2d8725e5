"""open-mmlab/mmpretrain#702: stages are frozen by the model's own ``train``, which is never called.

argv[1]: broken or healthy.
"""

import sys
from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Backbone(nn.Module):
    def __init__(self, frozen_stages):
        super().__init__()
        self.frozen_stages = frozen_stages
        widths = (8, 32, 32, 32)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths)
        )
        self.head = nn.Linear(32, 2)

    def train(self, mode=True):
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            stage.eval()
            for param in stage.parameters():
                param.requires_grad = False
        return self

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


x = torch.randn(320, 8)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
model = Backbone(frozen_stages=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
for epoch in range(2):
    if not BROKEN:
        model.train()
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
