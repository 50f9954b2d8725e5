"""A GAN with two optimizers; argv[1] is a mistake."""

import sys

import torch
from torch import nn

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
torch.manual_seed(0)
real = torch.randn(512, 2) * 0.3 + torch.tensor([1.0, -1.0])
G = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(32, 1))
g_opt = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.999))
d_opt = torch.optim.Adam((G if BUG == "wrong parameters" else D).parameters(), lr=1e-3, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
for _step in range(60):
    x = real[torch.randint(len(real), (32,))]
    with torch.no_grad():
        fake = G(torch.randn(32, 4))
    if BUG != "critic not cleared":
        d_opt.zero_grad()
    d_loss = bce(D(x), torch.ones(32, 1)) + bce(D(fake), torch.zeros(32, 1))
    d_loss.backward()
    d_opt.step()
    if BUG != "generator not cleared":
        g_opt.zero_grad()
    g_loss = bce(D(G(torch.randn(32, 4))), torch.ones(32, 1))
    g_loss.backward()
    if BUG == "generator steps early":
        g_opt.zero_grad()
    if BUG != "generator never steps":
        g_opt.step()
print(f"{d_loss.item():.6f} {g_loss.item():.6f}")
