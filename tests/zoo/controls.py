"""Programs that memorise their samples past the inputs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

LEAKAGE = "Kapoor and Narayanan 2022, https://arxiv.org/abs/2207.07048"
TUTORIAL = "https://pytorch.org/tutorials/beginner/transformer_tutorial.html"


def sequences(batch_size: int = 16) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(96) % 3
    x = torch.randn(96, 6, 8, generator=generator) * 0.5 + torch.randn(3, 1, 8, generator=generator)[y] * 1.5
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True)


@pair("learns-from-inputs", source=TUTORIAL, where="place in the batch")
def position_encoding_along_the_batch(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            place = torch.arange(64.0)[:, None] * torch.exp(torch.arange(0, 16, 2) * (-math.log(1e4) / 16))
            table = torch.stack([place.sin(), place.cos()], -1).reshape(64, 16)
            self.register_buffer("table", table)
            self.enter = nn.Linear(8, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            h = self.enter(x)
            h = h + (self.table[: h.size(0), None] if broken else self.table[: h.size(1)])
            return self.head(self.layer(h).mean(1))

    return Target(Net(), sequences(), nn.CrossEntropyLoss())


@pair(
    "learns-from-inputs",
    source="https://discuss.pytorch.org/t/learn-initial-hidden-state-h0-for-rnn/10013",
    where="place in the batch",
)
def initial_state_for_each_row(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Parameter(torch.randn(1, 16 if broken else 1, 16) * 0.5)
            self.body = nn.GRU(8, 16, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            start = self.start[:, : len(x)] if broken else self.start.expand(-1, len(x), -1).contiguous()
            return self.head(self.body(x, start)[0][:, -1])

    return Target(Net(), sequences(), nn.CrossEntropyLoss())


@pair("learns-from-inputs", source=LEAKAGE, where="the labels reach the predictions")
def label_column_kept_among_the_features(broken: bool) -> Target:
    def step(model, batch):
        x, y = batch
        features = torch.cat([x, y[:, None].float() if broken else x.norm(dim=1, keepdim=True)], 1)
        return F.cross_entropy(model(features), y)

    return Target(mlp(features=9, classes=2), blobs(), training_step=step)


@pair("learns-from-inputs", source=LEAKAGE, where="`labels`")
def label_embedded_by_the_model(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=16)
            self.table = nn.Embedding(3, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, x, labels=None):
            h = self.body(x).relu()
            context = self.table(labels) if broken else self.table(self.head(h).argmax(-1))
            logits = self.head(h + 0.5 * context)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    loader = blobs(classes=3)

    def collate(rows):
        x, y = zip(*rows, strict=True)
        return {"x": torch.stack(x), "labels": torch.stack(y)}

    return Target(Net(), DataLoader(loader.dataset, 16, shuffle=True, collate_fn=collate))


@pair("learns-from-inputs", source=LEAKAGE, where="the labels reach the predictions through `future`")
def forecast_that_is_given_its_own_step(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.GRU(1, 24, batch_first=True), nn.GRU(1, 24, batch_first=True)
            self.head = nn.Linear(24, 1)

        def forward(self, past, future):
            state = self.encoder(past[..., None])[1]
            given = future if broken else torch.cat([past[:, -1:], future[:, :-1]], 1)
            return self.head(self.decoder(given[..., None], state)[0])[..., 0]

    generator = torch.Generator().manual_seed(0)
    start = torch.rand(96, 1, generator=generator) * 6
    speed = torch.rand(96, 1, generator=generator) + 0.3
    series = (start + speed * torch.arange(12)).sin() + 0.3 * torch.randn(96, 12, generator=generator)
    loader = DataLoader(TensorDataset(series[:, :8], series[:, 8:]), 16, shuffle=True)

    def step(model, batch):
        past, future = batch
        return F.mse_loss(model(past, future), future)

    return Target(Net(), loader, training_step=step)


@pair("learns-from-inputs", source=LEAKAGE, where="the labels reach the predictions")
def residual_from_the_target(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=1)

        def forward(self, x, y):
            return self.body(x)[:, 0] + (y if broken else x[:, 0])

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x.abs().sum(1) - 6), 16, shuffle=True)
    return Target(Net(), loader, training_step=lambda model, batch: F.mse_loss(model(*batch), batch[1]))
