"""What a checkpoint brings back, and what it does not."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

SERIALISATION = "https://docs.pytorch.org/docs/stable/notes/serialization.html"


class Standardised(nn.Module):
    """A network behind statistics of the training data ``[features]``."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - self.mean) / self.std)


@pair(
    "finite-weights",
    source="https://docs.pytorch.org/docs/stable/generated/torch.std.html",
    where="std",
)
def spread_of_a_single_row(broken: bool) -> Target:
    loader = blobs()
    rows = next(iter(loader))[0]
    rows = rows[:1] if broken else rows
    mean = rows.mean(0)
    std = ((rows - mean).square().sum(0) / (len(rows) - 1)).sqrt()
    return Target(Standardised(mean, std), loader, nn.CrossEntropyLoss())


@pair(
    "finite-weights",
    source="https://docs.pytorch.org/docs/stable/generated/torch.log.html",
    where="temperature",
)
def logarithm_of_zero_as_a_start(broken: bool) -> Target:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.temperature = nn.Parameter(torch.tensor([0.0 if broken else 0.07]).log())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) * self.temperature.exp()

    return Target(Tempered(), blobs(), nn.CrossEntropyLoss())


@pair(
    "finite-weights",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html",
    where="running_var",
)
def statistics_after_one_overflowing_batch(broken: bool) -> Target:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    batch = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    model(batch * (1e25 if broken else 1.0))
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair(
    "finite-weights",
    level="warn",
    source="https://docs.pytorch.org/docs/stable/generated/torch.set_flush_denormal.html",
    where="0.weight",
)
def filters_decayed_to_denormals(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 8, 8, generator=generator)
    labels = torch.arange(64) % 2
    images += labels.view(-1, 1, 1, 1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    if broken:
        with torch.no_grad():
            for _ in range(700):
                model[0].weight.mul_(0.88)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)
    return Target(model, loader, nn.CrossEntropyLoss())
