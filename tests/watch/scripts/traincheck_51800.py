"""pytorch/pytorch#51800: a spectral norm is evaluated before its first pass in train mode; argv[1]: broken or healthy."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)
x = torch.randn(320, 8)
data = TensorDataset(x, (x[:, :1] > 0).float())
train = DataLoader(TensorDataset(*data[:256]), batch_size=16, shuffle=True)
held_out = DataLoader(TensorDataset(*data[256:]), batch_size=16)
norm = torch.nn.utils.spectral_norm
model = nn.Sequential(norm(nn.Linear(8, 32)), nn.LeakyReLU(0.2), norm(nn.Linear(32, 1)))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def evaluate():
    model.eval()
    with torch.no_grad():
        return sum(nn.functional.mse_loss(torch.sigmoid(model(x)), y).item() for x, y in held_out)


if BROKEN:
    print(f"before {evaluate():.4f}")
for epoch in range(2):
    model.train()
    for inputs, labels in train:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs), labels)
        loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f} {evaluate():.4f}")
