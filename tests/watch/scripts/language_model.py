"""An LSTM language model on slices of one long tensor, without a loader; argv[1] is a mistake."""

import sys

import torch
from torch import nn

BUG = sys.argv[1] if len(sys.argv) > 1 else ""
torch.manual_seed(0)
text = ("the quick brown fox jumps over the lazy dog and runs away. " * 60)[:3000]
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
train, held_out = data[:2400].view(8, 300), data[2400:].view(4, 150)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(letters), 24)
        self.rnn = nn.LSTM(24, 48, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(48, len(letters))

    def forward(self, x, state=None):
        hidden, state = self.rnn(self.embed(x), state)
        return self.out(self.drop(hidden)), state


model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=1e6 if BUG == "rate" else 1.0)
kept = []


def loss_of(x, y, state=None):
    logits, state = model(x, state)
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()), state


for epoch in range(4):
    if BUG != "eval never undone" or not epoch:
        model.train()
    state = None
    for start in range(0, 280, 20):
        x, y = train[:, start : start + 20], train[:, start + 1 : start + 21]
        loss, state = loss_of(x, y, state)
        state = tuple(part.detach() for part in state)
        if BUG != "not cleared":
            optimizer.zero_grad()
        loss.backward()
        if BUG != "no clip":
            nn.utils.clip_grad_norm_(model.parameters(), 0.25 if BUG != "clip to nothing" else 1e-6)
        if BUG == "step again":
            optimizer.step()
        optimizer.step()
        if BUG == "losses kept":
            kept.append(loss)
    if BUG != "no eval":
        model.eval()
    with torch.no_grad():
        value = loss_of(held_out[:, :-1], held_out[:, 1:])[0].item()
    print(epoch, f"{loss.item():.6f} {value:.6f}")
