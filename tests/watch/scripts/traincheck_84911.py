"""discuss.pytorch.org/t/84911: fine-tuning where all but the norms are frozen, the new classifier too.

The optimizer here holds the classifier alone, so that nothing that it holds trains. argv[1]: broken or healthy.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self._conv_head, self._bn1 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self._fc = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self._bn0(self._conv_stem(x)))
        x = torch.relu(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images.float() / 16).view(-1, 1, 8, 8)
loader = DataLoader(TensorDataset(images[:480], labels[:480]), batch_size=32, shuffle=True)
model = Net()
if BROKEN:
    for name, param in model.named_parameters():
        if "bn" not in name:
            param.requires_grad = False
optimizer = torch.optim.Adam((model._fc if BROKEN else model).parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss()
for epoch in range(3):
    model.train()
    for data, target in loader:
        optimizer.zero_grad()
        loss = criterion(model(data), target)
        loss.backward()
        optimizer.step()
    print(epoch, f"{loss.item():.4f}")
