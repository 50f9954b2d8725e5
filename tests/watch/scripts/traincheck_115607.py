"""pytorch/pytorch#115607: a compiled optimizer goes on as in an iteration whose gradients were all ``None``.

The compiler guarded too little: after that iteration the step that does nothing was run again and again. Torch was
mended since, so the optimizer here remembers what it saw, as the compiled code did. argv[1]: broken or healthy.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Compiled(torch.optim.AdamW):
    """Runs the kernel for the gradients that it was made for."""

    kernel_for_none = False

    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        none = all(grad is None for grad in grads)
        self.kernel_for_none = none or (BROKEN and self.kernel_for_none)
        return None if self.kernel_for_none else super().step(closure)


x = torch.randn(384, 8)
loader = DataLoader(TensorDataset(x, (x[:, :2].sum(1) > 0).long()), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = Compiled(model.parameters(), lr=3e-3)
for epoch in range(2):
    for step, (inputs, labels) in enumerate(loader):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        if not (epoch == 0 and step == 2):
            loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
