"""stackoverflow.com/questions/67180955: each worker of a loader draws the same augmentations.

Torch seeds NumPy in workers since 1.9; a ``worker_init_fn`` that seeds it with a constant brings the bug back.
argv[1]: broken or healthy.
"""

import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Crops(Dataset):
    """Random crops of one picture, and where they are from."""

    def __init__(self):
        self.picture = torch.randn(64, 64)

    def __len__(self):
        return 192

    def __getitem__(self, index):
        x, y = np.random.randint(0, 56, 2)
        return self.picture[x : x + 8, y : y + 8].clone(), torch.tensor([x / 56, y / 56], dtype=torch.float32)


def seeded(worker):
    np.random.seed(0)


loader = DataLoader(Crops(), batch_size=16, num_workers=2, worker_init_fn=seeded if BROKEN else None)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
