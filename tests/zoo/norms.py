"""Norms that normalise nothing, or the wrong dimension, and dropout in the wrong place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs

from . import pair
from .initial_weights import sentences, stripes

GROUPS = "https://arxiv.org/abs/1803.08494"
LAYER_NORM = "https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html"
UMLAUT = "UMLAUT, https://doi.org/10.1145/3411764.3445538"
DROPOUT = "https://stackoverflow.com/q/46841362"


def waves(samples: int = 64, length: int = 24) -> DataLoader:
    """Signals ``[samples, 1, length]`` of two frequencies, in noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 2
    phase = 6.28 * torch.rand(samples, 1, generator=generator)
    x = torch.sin(torch.arange(length) * (0.4 + 0.8 * y[:, None]) + phase)
    x = x + 0.2 * torch.randn(samples, length, generator=generator)
    return DataLoader(TensorDataset(x[:, None], y), batch_size=16, shuffle=True)


@pair("normalization", source=GROUPS, where="by itself")
def as_many_groups_as_channels_after_pooling(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 2)
            self.norm = nn.GroupNorm(16 if broken else 2, 16)
            self.skip = nn.Linear(64, 16)

        def forward(self, x):
            pooled = self.conv(x).relu().amax((2, 3))
            return self.head(self.norm(pooled).relu() + self.skip(x.flatten(1)))

    return Target(Net(), stripes(), nn.CrossEntropyLoss())


@pair("normalization", source=LAYER_NORM, where="by itself")
def layer_norm_over_a_single_feature(broken: bool) -> Target:
    """Each feature is embedded on its own; the norm belongs behind the embedding."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(1, 16)
            self.norm = nn.LayerNorm(1 if broken else 16)
            self.wide, self.head = nn.Linear(8, 16), nn.Linear(8 * 16 + 16, 2)

        def forward(self, x):
            each = x[:, :, None]
            each = self.embed(self.norm(each)) if broken else self.norm(self.embed(each))
            return self.head(torch.cat([each.relu().flatten(1), self.wide(x).relu()], 1))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())


@pair(
    "normalization",
    level="warn",
    source="https://discuss.pytorch.org/t/layernorm-and-conv1d/97163",
    where="positions",
)
def layer_norm_over_time_behind_a_convolution(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(1, 16, 5, padding=2), nn.Conv1d(16, 16, 5, padding=2)
            self.norm = nn.LayerNorm(24 if broken else 16)
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            h = self.conv1(x)
            h = self.norm(h) if broken else self.norm(h.transpose(1, 2)).transpose(1, 2)
            return self.head(self.conv2(h.relu()).relu().amax(2))

    return Target(Net(), waves(), nn.CrossEntropyLoss())


@pair("normalization", level="warn", source=LAYER_NORM, where="eps")
def eps_of_one_on_small_embeddings(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(40, 32)
            nn.init.normal_(self.embed.weight, std=0.02)
            self.norm = nn.LayerNorm(32, 1.0 if broken else 1e-5)
            self.up, self.head = nn.Linear(32, 64), nn.Linear(64, 2)

        def forward(self, x):
            return self.head(F.gelu(self.up(self.norm(self.embed(x)).amax(1))))

    return Target(Net(), sentences(), nn.CrossEntropyLoss())


@pair("normalization", level="warn", source=GROUPS, where="2 values")
def batch_norm_on_two_samples(broken: bool) -> Target:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    return Target(model, blobs(batch_size=2 if broken else 16), nn.CrossEntropyLoss())


@pair("normalization", level="warn", source=DROPOUT, where="dropout of 0.9")
def keep_probability_taken_for_the_dropped_share(broken: bool) -> Target:
    model = nn.Sequential(
        nn.Linear(8, 64),
        nn.ReLU(),
        nn.Dropout(0.9 if broken else 0.1),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair("normalization", level="warn", source=UMLAUT, where="outputs are replaced by 0")
def dropout_behind_the_last_layer(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x):
            h = self.hidden(x).relu()
            if broken:
                return F.dropout(self.head(h), 0.2, self.training)
            return self.head(F.dropout(h, 0.2, self.training))

    return Target(Net(), blobs(), nn.CrossEntropyLoss())
