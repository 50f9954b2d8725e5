"""More healthy loops as people write them; argv[1] says which."""

import copy
import itertools
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

KIND = sys.argv[1]
torch.manual_seed(0)
X = torch.randn(320, 6)
Y = (X[:, 0] + 0.3 * torch.randn(320) > 0).long()
data = TensorDataset(X, Y)
train_set, val_set, test_set = random_split(data, [224, 48, 48])
train, val, test = (
    DataLoader(part, batch_size=16, shuffle=i == 0) for i, part in enumerate([train_set, val_set, test_set])
)


def net(out=2, width=32, norm=True):
    middle = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(6, width), *middle, nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, out))


model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

if KIND == "train accuracy too":
    for _ in range(3):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            for loader in (train, val):
                for x, _ in loader:
                    model(x).argmax(1)
elif KIND == "test never read":
    for _ in range(2):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for x, y in val:
                F.cross_entropy(model(x), y)
elif KIND == "no validation":
    for _ in range(3):
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
elif KIND == "critic":
    G, D = (
        nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 6)),
        net(1, norm=False),
    )
    g, d = torch.optim.RMSprop(G.parameters(), 1e-3), torch.optim.RMSprop(D.parameters(), 1e-3)
    for index, (x, _) in enumerate(itertools.islice(itertools.cycle(train), 60)):
        d.zero_grad()
        fake = G(torch.randn(len(x), 3)).detach()
        mixed = (x + torch.rand(len(x), 1) * (fake - x)).requires_grad_()
        (slope,) = torch.autograd.grad(D(mixed).sum(), mixed, create_graph=True)
        (D(fake).mean() - D(x).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()).backward()
        d.step()
        if index % 5 == 4:
            g.zero_grad()
            (-D(G(torch.randn(16, 3))).mean()).backward()
            g.step()
elif KIND == "variational":
    encoder, decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8)), net(6)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for epoch in range(5):
        for x, _ in train:
            mean, log = encoder(x).chunk(2, 1)
            z = mean + torch.randn_like(mean) * (log / 2).exp()
            kl = 0.5 * (mean.pow(2) + log.exp() - log - 1).sum(1).mean()
            loss = F.mse_loss(decoder(F.pad(z, (0, 2))), x) + 0.01 * epoch * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            decoder(torch.randn(4, 6))
elif KIND == "deep q":
    policy, target = net(2, norm=False), net(2, norm=False)
    target.load_state_dict(policy.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    policy.eval() if len(sys.argv) > 2 else policy.train()
    memory = []
    plain = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    frozen = copy.deepcopy(plain)
    for step in range(80):
        state = torch.randn(6)
        with torch.no_grad():
            action = plain(state).argmax()
        memory.append((state, action, torch.randn(()), torch.randn(6)))
        if len(memory) < 16:
            continue
        rows = [memory[i] for i in torch.randint(len(memory), (16,))]
        s, a, r, n = map(torch.stack, zip(*rows, strict=True))
        with torch.no_grad():
            goal = r + 0.9 * frozen(n).max(1).values
        optimizer.zero_grad()
        F.smooth_l1_loss(plain(s).gather(1, a[:, None]).squeeze(1), goal).backward()
        nn.utils.clip_grad_value_(plain.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            frozen.load_state_dict(plain.state_dict())
elif KIND == "meta":
    weight = nn.Parameter(torch.zeros(6, 1))
    outer = torch.optim.SGD([weight], lr=0.05)
    for _ in range(30):
        fast = weight
        truth = torch.randn(6, 1)
        for _ in range(3):
            inner = (X[:16] @ fast - X[:16] @ truth).pow(2).mean()
            (slope,) = torch.autograd.grad(inner, fast, create_graph=True)
            fast = fast - 0.05 * slope
        outer.zero_grad()
        (X[16:32] @ fast - X[16:32] @ truth).pow(2).mean().backward()
        outer.step()
elif KIND == "sharpness aware":
    for x, y in [*train] * 2:
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            size = sum(p.grad.norm() ** 2 for p in model.parameters()).sqrt()
            steps = [0.05 * p.grad / size for p in model.parameters()]
            for p, step in zip(model.parameters(), steps, strict=True):
                p.add_(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, step in zip(model.parameters(), steps, strict=True):
                p.sub_(step)
        optimizer.step()
        optimizer.zero_grad()
elif KIND == "frozen norms":
    for p in model[1].parameters():
        p.requires_grad_(False)
    for _ in range(2):
        model.train()
        model[1].eval()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
elif KIND == "two phases":
    for body in (False, True):
        for p in model[0].parameters():
            p.requires_grad_(body)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=2 * len(train))
        for _ in range(2):
            for x, y in train:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
elif KIND == "moving average":
    average = copy.deepcopy(model).eval().requires_grad_(False)
    best, best_state = 9.9, None
    for _ in range(4):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            for kept, now in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(now.detach(), 0.05)
        with torch.no_grad():
            value = sum(F.cross_entropy(average(x), y).item() for x, y in val)
        if value < best:
            best, best_state = value, {name: part.clone() for name, part in model.state_dict().items()}
    model.load_state_dict(best_state)
elif KIND == "contrastive":
    head = nn.Linear(32, 16)
    body = nn.Sequential(*list(net())[:-1])
    optimizer = torch.optim.Adam(itertools.chain(body.parameters(), head.parameters()), lr=1e-3)
    for x, _ in [*train] * 3:
        a, b = (F.normalize(head(body(x + 0.1 * torch.randn_like(x))), dim=1) for _ in range(2))
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(a @ b.T / 0.1, torch.arange(len(x))).backward()
        optimizer.step()
elif KIND == "step global, passes not":
    step = 0
    for _ in range(6):
        for x, y in train:
            (F.cross_entropy(model(x), y) / 4).backward()
            step += 1
            if step % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
elif KIND == "validation within a pass":
    batches = 0
    for _ in range(3):
        for x, y in train:
            (F.cross_entropy(model(x), y) / 2).backward()
            batches += 1
            if batches % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
            if batches % 7 == 0:
                model.eval()
                with torch.no_grad():
                    for a, _ in val:
                        model(a)
                model.train()
elif KIND == "embedding, sparse and unused":
    table = nn.Embedding(1000, 6)
    spare = nn.Linear(4, 4)
    optimizer = torch.optim.Adam([*table.parameters(), *model.parameters(), *spare.parameters()], lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(table(torch.randint(5, (16,)))), torch.randint(2, (16,))).backward()
        optimizer.step()
elif KIND == "experts":
    experts = nn.ModuleList(nn.Linear(6, 2) for _ in range(8))
    optimizer = torch.optim.SGD(experts.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        rows = torch.randint(224, (16,))
        chosen = experts[step % 7 if step % 3 else 0]
        optimizer.zero_grad()
        F.cross_entropy(chosen(X[rows]), Y[rows]).backward()
        optimizer.step()
elif KIND == "pretraining, then fine-tuning":
    decoder = nn.Linear(2, 6)
    first = torch.optim.Adam([*model.parameters(), *decoder.parameters()], lr=1e-3)
    for x, _ in train:
        first.zero_grad()
        F.mse_loss(decoder(model(x)), x).backward()
        first.step()
    model[-1] = nn.Linear(32, 2)
    second = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in [*train] * 2:
        second.zero_grad()
        F.cross_entropy(model(x), y).backward()
        second.step()
elif KIND == "head only, body not frozen":
    optimizer = torch.optim.Adam(model[-1].parameters(), lr=1e-3)
    for x, y in [*train] * 2:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
elif KIND == "multi task":
    body, heads = net(16), nn.ModuleDict({"a": nn.Linear(16, 2), "b": nn.Linear(16, 1)})
    optimizer = torch.optim.Adam([*body.parameters(), *heads.parameters()], lr=1e-3)
    for index, (x, y) in enumerate([*train] * 3):
        hidden = body(x)
        loss = (
            F.cross_entropy(heads["a"](hidden), y) if index % 2 else F.mse_loss(heads["b"](hidden), x[:, :1])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
elif KIND == "recurrent":
    cell, read = nn.GRUCell(6, 16), nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*cell.parameters(), *read.parameters()], lr=1e-3)
    state = torch.zeros(16, 16)
    for x, y in [*train] * 3:
        state = cell(x, state.detach())
        loss = F.cross_entropy(read(state), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
elif KIND == "by layer":
    optimizers = {p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()}

    def apply(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(apply)
    for x, y in [*train] * 2:
        F.cross_entropy(model(x), y).backward()
elif KIND == "warm up from zero":
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    for x, y in [*train] * 2:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
elif KIND == "hinge that is solved":
    line = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(line.parameters(), lr=0.3)
    for x, _ in [*train] * 3:
        sign = (x[:, 0] > 0).float() * 2 - 1
        keep = x[:, 0].abs() > 0.3
        loss = F.relu(0.01 - line(x).squeeze(1) * sign)[keep].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
elif KIND == "silencing step":
    optimizer.step()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(3):
        schedule.step()
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
elif KIND == "skips bad batches":
    for index, (x, y) in enumerate([*train] * 2):
        loss = F.cross_entropy(model(x), y)
        if index % 5 == 0:
            loss = loss * float("nan")
        if not torch.isfinite(loss):
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
elif KIND == "half":
    model = net(norm=False).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x, y in [*train] * 2:
        optimizer.zero_grad()
        F.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
elif KIND == "compiled for real":
    fast = torch.compile(net(norm=False), backend="aot_eager")
    optimizer = torch.optim.Adam(fast.parameters(), lr=1e-3)
    for x, y in [*train] * 2:
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()
print(sum(p.double().sum().item() for p in model.parameters()))
