"""GradScaler without unscaling or clipping; argv[1] is a mistake."""

import sys

import torch
from torch import nn

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
torch.manual_seed(0)
X = torch.randn(256, 4)
Y = (X.sum(1) > 0).float()
model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler("cpu")
for _epoch in range(2):
    for rows in torch.randperm(256).split(16):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.binary_cross_entropy_with_logits(model(X[rows]).squeeze(1), Y[rows])
        scaler.scale(loss).backward()
        if BUG == "plain step":
            optimizer.step()
        else:
            scaler.step(optimizer)
        scaler.update() if BUG != "plain step" else None
print(f"{loss.item():.6f}")
