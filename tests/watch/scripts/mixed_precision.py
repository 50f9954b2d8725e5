"""Gradient accumulation under autocast with a gradient scaler; argv[1] is a mistake."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
K = 4
torch.manual_seed(0)
X = torch.randn(304, 8)
Y = X[:, :1] ** 2
loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scaler = torch.amp.GradScaler("cpu", enabled=BUG != "off", init_scale=2.0**10)
for epoch in range(4):
    for index, (x, y) in enumerate(loader):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
            loss = nn.functional.mse_loss(out.float(), y) / K
            if BUG == "overflow":
                loss = loss + (out.float() * 0).abs().sqrt().sum()
        scaler.scale(loss).backward()
        if BUG == "cleared each batch":
            if (index + 1) % K == 0:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            continue
        last = index + 1 == len(loader) and BUG != "tail"
        if (index + 1) % K and not last:
            continue
        if BUG != "clip while scaled":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if BUG != "not cleared":
            optimizer.zero_grad()
    print(epoch, f"{loss.item():.6f}")
