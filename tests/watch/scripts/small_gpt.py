"""A character GPT with warm-up, global accumulation and evaluation in between; argv[1] is a mistake."""

import math
import sys

import torch
from torch import nn
from torch.nn import functional as F

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
torch.manual_seed(0)
text = "to be or not to be that is the question " * 50
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
train, held_out = data[:1600], data[1600:]
SIZE, BLOCK, K, STEPS = 32, 16, 2, 60


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.attention = nn.MultiheadAttention(SIZE, 4, dropout=0.1, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(SIZE, 64), nn.GELU(), nn.Linear(64, SIZE), nn.Dropout(0.1))

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        normed = self.one(x)
        x = x + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.feed(self.two(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(letters), SIZE), nn.Embedding(BLOCK, SIZE)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(SIZE, len(letters), bias=False)
        self.head.weight = self.tokens.weight
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(source):
    starts = torch.randint(len(source) - BLOCK - 1, (8,))
    rows = torch.stack([source[i : i + BLOCK + 1] for i in starts])
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def evaluate():
    if BUG != "no eval":
        model.eval()
    value = sum(model(*batch(held_out))[1].item() for _ in range(3)) / 3
    if BUG != "train forgotten":
        model.train()
    return value


def rate(step):
    length = 3 if BUG == "schedule short" else STEPS
    if step < 5:
        return (step + 1) / 5
    return 0.0 if step >= length else 0.5 * (1 + math.cos(math.pi * (step - 5) / max(1, length - 5)))


model = GPT()
held = list(GPT().parameters()) if BUG == "detached" else list(model.parameters())
optimizer = torch.optim.AdamW(held, lr=3e-3)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
for step in range(STEPS):
    for _ in range(K):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, loss = model(*batch(train))
        (loss / K).backward()
        if BUG == "cleared in between":
            optimizer.zero_grad()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if BUG != "no step":
        optimizer.step()
    if BUG == "no step":
        pass
    elif BUG != "no schedule":
        schedule.step()
    if BUG != "not cleared":
        optimizer.zero_grad(set_to_none=True)
    if step % 20 == 19:
        print(step, f"{loss.item():.6f} {evaluate():.6f}")
