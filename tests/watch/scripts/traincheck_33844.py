"""huggingface/transformers#33844: attention passes its dropout on in evaluation too; argv[1]: broken or healthy."""

import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

BROKEN = sys.argv[1:] == ["broken"]
torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training or BROKEN else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(32, 32), nn.Embedding(10, 32)
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(32), Attention(32, 4, 0.1), nn.LayerNorm(32)
        self.head = nn.Linear(32, 2)

    def forward(self, ids):
        x = self.embed(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm2(x + self.attention(self.norm1(x))).mean(1))


ids = torch.randint(2, 32, (320, 10))
labels = (ids == 7).any(1).long()
train_loader = DataLoader(TensorDataset(ids[:256], labels[:256]), batch_size=16, shuffle=True)
valid_loader = DataLoader(TensorDataset(ids[256:], labels[256:]), batch_size=16)
model = Encoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
for epoch in range(2):
    model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        total = sum(F.cross_entropy(model(x), y).item() for x, y in valid_loader)
    print(epoch, f"{loss.item():.4f} {total:.4f}")
