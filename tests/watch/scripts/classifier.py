"""A classifier with dropout and BatchNorm, loaders, a schedule, clipping and a best checkpoint; argv[1] is a mistake."""

import copy
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
EPOCHS = 5

torch.manual_seed(0)
X = torch.randn(352, 8)
Y = (X[:, 0] * X[:, 1] > 0).long()
train_loader = DataLoader(TensorDataset(X[:256], Y[:256]), batch_size=16, shuffle=True)
val_loader = DataLoader(TensorDataset(X[256:], Y[256:]), batch_size=32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        return self.head(self.body(x))


model = Net()
criterion = nn.CrossEntropyLoss()
lr = 0.0 if BUG == "lr zero" else 1e-2
optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
if BUG == "head swapped":
    model.head = nn.Linear(64, 2)
if BUG == "body not trained":
    optimizer = torch.optim.AdamW(Net().parameters(), lr=lr)
steps = EPOCHS if BUG == "schedule per batch" else EPOCHS * len(train_loader)
if BUG == "decay per batch":
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
else:
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
best, best_state, history, total = 0.0, model.state_dict(), [], 0.0

for epoch in range(EPOCHS):
    if BUG != "eval never undone" or not epoch:
        model.train()
    if BUG == "eval from the start":
        model.eval()
    for step, (x, y) in enumerate(val_loader if BUG == "trains on validation" else train_loader):
        if BUG == "clip before backward":
            optimizer.zero_grad()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        logits = model(x)
        if BUG == "constant loss":
            logits = logits.detach() * 0 + model.head.bias * 0
        loss = criterion(logits, y)
        if BUG == "nan" and epoch:
            loss = loss + (logits.sum() * 0).log()
        if BUG == "nan in weights" and epoch == 1 and step == 2:
            loss = loss * float("inf")
        if BUG == "scheduler first":
            scheduler.step()
        loss.backward()
        if BUG == "zero between":
            optimizer.zero_grad()
        if BUG not in ("clip after step", "clip before backward"):
            nn.utils.clip_grad_norm_(model.parameters(), 1e-5 if BUG == "clip tiny" else 5.0)
        if BUG == "zero each, step rarely":
            if step % 4 == 3:
                optimizer.step()
        elif BUG != "no step":
            optimizer.step()
        if BUG == "two steps":
            optimizer.step()
        if BUG == "clip after step":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if BUG not in ("no zero_grad", "clip before backward"):
            optimizer.zero_grad(set_to_none=BUG != "")
        if BUG not in ("scheduler never", "scheduler first", "schedule per epoch"):
            scheduler.step()
        if BUG == "graphs kept":
            history.append(loss)
        else:
            total += loss.item()
    if BUG == "schedule per epoch":
        scheduler.step()
    if BUG not in ("no eval", "eval never called"):
        model.eval()
    correct = 0
    with torch.set_grad_enabled(BUG in ("graphs in validation", "steps in validation")):
        for x, y in train_loader if BUG == "validates on train" else val_loader:
            logits = model(x)
            correct += (logits.argmax(1) == y).sum().item()
            loss = criterion(logits, y)
            if BUG == "steps in validation":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    if BUG == "gradients left off":
        torch.set_grad_enabled(False)
    accuracy = correct / 96
    if accuracy >= best:
        best = accuracy
        if BUG in ("best is live", "best is saved live"):
            best_state = model.state_dict()
        else:
            best_state = copy.deepcopy(model.state_dict())
    print(epoch, f"{total:.6f} {accuracy:.4f}")
if BUG == "best is saved live":
    torch.save({"best": best_state}, "/dev/null")
else:
    model.load_state_dict(best_state)
print(sum(p.double().sum().item() for p in model.parameters()))
