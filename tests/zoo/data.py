"""Data whose labels carry less than they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from debugkit import Target
from debugkit.testing import mlp

from . import pair

IMBALANCE = "https://arxiv.org/abs/1710.05381"
KARPATHY = "https://karpathy.github.io/2019/04/25/recipe/"


def features(y: torch.Tensor) -> torch.Tensor:
    """``[samples, 8]`` in which the first feature shows the class."""
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 4 * y.float()
    return x


def rare(samples: int, share: float) -> torch.Tensor:
    """Classes 0 and 1, the second with a share of the samples."""
    y = (torch.arange(samples) < samples * share).long()
    return y[torch.randperm(samples, generator=torch.Generator().manual_seed(1))]


def loader(*columns: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=32, shuffle=True)


def cross_entropy_of(label: Callable[[Any], torch.Tensor]) -> Callable[[nn.Module, Any], torch.Tensor]:
    return lambda model, batch: F.cross_entropy(model(batch[0]), label(batch))


@pair("label-balance", source=KARPATHY)
def labels_compared_with_the_wrong_type(broken: bool) -> Target:
    y = rare(192, 0.5)
    labels = torch.tensor([int(value == ("1" if broken else 1)) for value in y.tolist()])
    return Target(mlp(), loader(features(y), labels), nn.CrossEntropyLoss())


@pair("label-balance", source=KARPATHY, where="batch[1]")
def one_class_left_by_a_filter_beside_a_mask(broken: bool) -> Target:
    y = rare(400, 0.5)
    if broken:
        y = torch.zeros_like(y)
    mask = (torch.arange(400) % 20 != 0).long()

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, labels, valid = batch
        loss = F.cross_entropy(model(x), labels, reduction="none")
        return (loss * valid).sum() / valid.sum()

    return Target(mlp(), loader(features(y), y, mask), training_step=step)


@pair("label-balance", level="warn", source=IMBALANCE, where="batch[1]")
def rare_class_beside_a_group_number(broken: bool) -> Target:
    y = rare(800, 0.02 if broken else 0.4)
    group = rare(800, 0.03)
    return Target(
        mlp(), loader(features(y), y, group), training_step=cross_entropy_of(lambda batch: batch[1])
    )


@pair("label-balance", level="warn", source=IMBALANCE, where="spam")
def rare_class_as_texts(broken: bool) -> Target:
    y = rare(600, 0.02 if broken else 0.5)
    names = ["ham", "spam"]
    rows = [(x, names[label]) for x, label in zip(features(y), y.tolist(), strict=True)]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, texts = batch
        return F.cross_entropy(model(x), torch.tensor([names.index(text) for text in texts]))

    return Target(mlp(), DataLoader(rows, batch_size=32, shuffle=True), training_step=step)  # type: ignore[arg-type]


class Graphs:
    """A batch in an object of its own."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x = x
        self.y = y


@pair("label-balance", level="warn", source=IMBALANCE, where="batch.y")
def rare_class_in_a_batch_object(broken: bool) -> Target:
    y = rare(600, 0.02 if broken else 0.5)
    data = TensorDataset(features(y), y)
    batches = DataLoader(
        data,
        batch_size=32,
        shuffle=True,
        collate_fn=lambda rows: Graphs(*map(torch.stack, zip(*rows, strict=True))),
    )
    return Target(mlp(), batches, training_step=lambda model, batch: F.cross_entropy(model(batch.x), batch.y))


@pair(
    "label-balance",
    level="warn",
    source="https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler",
)
def sampler_weights_by_count_instead_of_its_inverse(broken: bool) -> Target:
    y = rare(800, 0.1)
    counts = torch.bincount(y).float()
    weights = (counts if broken else 1 / counts)[y]
    sampler = WeightedRandomSampler(weights.tolist(), len(y), generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(features(y), y), batch_size=32, sampler=sampler)
    return Target(mlp(), data, nn.CrossEntropyLoss())
