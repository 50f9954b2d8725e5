"""stackoverflow.com/questions/60335387: a digit classifier whose loop has no ``zero_grad``; argv[1]: broken or healthy."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images.float() / 16).view(-1, 1, 8, 8)
train_loader = DataLoader(TensorDataset(images[:640], labels[:640]), batch_size=32, shuffle=True)
valid_loader = DataLoader(TensorDataset(images[1500:], labels[1500:]), batch_size=64)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(2):
    model.train()
    for data, label in train_loader:
        if not BROKEN:
            optimizer.zero_grad()
        loss = criterion(model(data), label)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(data).argmax(1) == label).sum().item() for data, label in valid_loader)
    print(epoch, f"{loss.item():.4f}", right)
