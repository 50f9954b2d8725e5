"""Healthy loops that look odd; argv[1] says which."""

import copy
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

KIND = sys.argv[1]
torch.manual_seed(0)
X = torch.randn(256, 6)
Y = (X[:, 0] > 0).long()
data = TensorDataset(X, Y)


def make():
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))


def epoch(model, optimizer, loader):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


model = make()
loader = DataLoader(data, batch_size=32, shuffle=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

if KIND == "mean teacher":
    teacher = copy.deepcopy(model)
    state = model.state_dict()
    for x, y in [*loader] * 3:
        with torch.no_grad():
            soft = teacher(x).softmax(1)
        optimizer.zero_grad()
        out = model(x)
        (F.cross_entropy(out, y) + F.mse_loss(out.softmax(1), soft)).backward()
        optimizer.step()
        with torch.no_grad():
            for name, value in teacher.state_dict().items():
                value.copy_(0.9 * value + 0.1 * state[name]) if value.is_floating_point() else None
elif KIND == "averaged weights":
    average = torch.optim.swa_utils.AveragedModel(model)
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=1e-3)
    for _ in range(4):
        epoch(model, optimizer, loader)
        average.update_parameters(model)
        schedule.step()
    torch.optim.swa_utils.update_bn(loader, average)
elif KIND == "folds":
    for fold in range(4):
        held_out = list(range(fold * 64, fold * 64 + 64))
        rest = [i for i in range(256) if i not in held_out]
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(2):
            epoch(model, optimizer, DataLoader(Subset(data, rest), batch_size=32, shuffle=True))
            model.eval()
            with torch.no_grad():
                for x, _ in DataLoader(Subset(data, held_out), batch_size=32):
                    model(x)
elif KIND == "adversarial":
    for x, y in [*loader] * 3:
        delta = torch.zeros_like(x, requires_grad=True)
        for _ in range(3):
            F.cross_entropy(model(x + delta), y).backward()
            delta.data = (delta.data + 0.01 * delta.grad.sign()).clamp(-0.03, 0.03)
            delta.grad = None
        optimizer.zero_grad()
        F.cross_entropy(model(x + delta.detach()), y).backward()
        optimizer.step()
elif KIND == "closure":
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    for _ in range(6):
        optimizer.step(closure)
elif KIND == "two loaders":
    other = DataLoader(TensorDataset(X[:40] + 1), batch_size=16, shuffle=True)
    stream = iter(other)
    for step in range(24):
        if step % 8 == 0:
            source = iter(loader)
        x, y = next(source)
        try:
            (z,) = next(stream)
        except StopIteration:
            stream = iter(other)
            (z,) = next(stream)
        (F.cross_entropy(model(x), y) + 0.1 * model(z).pow(2).mean()).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
elif KIND == "by hand":
    for x, y in [*loader] * 3:
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
                p.grad = None
elif KIND == "reinforce":
    policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(30):
        state, logs, rewards = torch.randn(4), [], []
        for _ in range(10):
            choice = torch.distributions.Categorical(logits=policy(state))
            action = choice.sample()
            logs.append(choice.log_prob(action))
            rewards.append(float(action == (state[0] > 0)))
            state = torch.randn(4)
        reward = torch.tensor(rewards)
        optimizer.zero_grad()
        (-(torch.stack(logs) * (reward - reward.mean())).sum()).backward()
        optimizer.step()
elif KIND == "batch loss plateau":
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3)
    after = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, after], milestones=[3])
    for _ in range(8):
        epoch(model, optimizer, loader)
        both.step()
        schedule.step(1.0)
elif KIND == "penalty":
    critic = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for x, _ in [*loader] * 3:
        x = x.clone().requires_grad_()
        out = critic(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        optimizer.zero_grad()
        (out.mean() + (slope.norm(dim=1) - 1).pow(2).mean()).backward()
        optimizer.step()
elif KIND == "checkpointing":
    from torch.utils.checkpoint import checkpoint

    for x, y in [*loader] * 3:
        optimizer.zero_grad()
        hidden = checkpoint(model[0], x, use_reentrant=False)
        F.cross_entropy(model[1:](hidden), y).backward()
        optimizer.step()
elif KIND == "unfreezing":
    for p in model[0].parameters():
        p.requires_grad_(False)
    body = torch.optim.SGD(model[0].parameters(), lr=1e-2)
    head = torch.optim.SGD(model[1:].parameters(), lr=1e-2)
    for step, (x, y) in enumerate([*loader] * 4):
        if step == 12:
            for p in model[0].parameters():
                p.requires_grad_(True)
        F.cross_entropy(model(x), y).backward()
        for each in (body, head):
            each.step()
            each.zero_grad()
elif KIND == "saved and copied":
    import pickle

    for _ in range(2):
        epoch(model, optimizer, loader)
        clone = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        state = model.state_dict()
        torch.save(state, "/dev/null")
    clone.load_state_dict(state)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    epoch(model, optimizer, loader)
    scheduler.step()
elif KIND == "compiled":
    fast = torch.compile(model, backend="eager")
    for x, y in [*loader] * 2:
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()
elif KIND == "workers":
    for _ in range(2):
        epoch(model, optimizer, DataLoader(data, batch_size=32, num_workers=1))
print(sum(p.double().sum().item() for p in model.parameters()))
