"""label-order beyond its own examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import mlp

CE = torch.nn.CrossEntropyLoss()
Tensor = torch.Tensor


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="label-order", config=config)["label-order"]


def samples(y: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    return x, y


def mixed(count: int = 128, classes: int = 2) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(1))


def in_order(y: Tensor, batch_size: int = 16, loss: Any = CE, outputs: int = 4) -> Target:
    return Target(mlp(classes=outputs), DataLoader(TensorDataset(*samples(y)), batch_size=batch_size), loss)


def one_hot() -> Target:
    return in_order(F.one_hot(mixed(classes=3).sort().values).float())


def binary_floats() -> Target:
    return in_order(mixed().sort().values.float().unsqueeze(1), loss=torch.nn.BCEWithLogitsLoss(), outputs=1)


def combinations() -> Target:
    y = torch.stack([mixed(), torch.arange(128) % 2], 1).float()
    return in_order(y[(2 * y[:, 0] + y[:, 1]).argsort()], loss=torch.nn.BCEWithLogitsLoss(), outputs=2)


def several_files() -> Target:
    data = TensorDataset(*samples(mixed().sort().values))
    files = ConcatDataset([Subset(data, range(50)), Subset(data, range(50, 128))])
    return Target(mlp(), DataLoader(files, batch_size=16), CE)


def two_sorted_files() -> Target:
    return in_order(torch.cat([mixed().sort().values, mixed().sort().values]))


def names() -> Target:
    y = mixed().sort().values.tolist()
    rows = [(torch.randn(8), ["cat", "dog"][label]) for label in y]

    def step(model: torch.nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(
            model(batch[0]), torch.tensor([["cat", "dog"].index(name) for name in batch[1]])
        )

    return Target(mlp(), DataLoader(rows, batch_size=16), training_step=step)  # type: ignore[arg-type]


def with_weights_in_between() -> Target:
    x, y = samples(mixed().sort().values)

    def step(model: torch.nn.Module, batch: Any) -> Tensor:
        inputs, weights, labels = batch
        return (F.cross_entropy(model(inputs), labels, reduction="none") * weights).mean()

    return Target(mlp(), DataLoader(TensorDataset(x, torch.ones(128), y), batch_size=16), training_step=step)


def one_at_a_time() -> Target:
    return in_order(mixed(60).sort().values, batch_size=1)


def some_ignored() -> Target:
    y = mixed().sort().values
    y[::5] = -100
    return in_order(y)


def cut_into_a_list() -> Target:
    x, y = samples(mixed().sort().values)
    return Target(mlp(), [*zip(x.split(16), y.split(16), strict=True)], CE)


def only_the_first_class_scanned() -> Target:
    return in_order(torch.arange(10).repeat_interleave(300), batch_size=64, outputs=10)


SORTED: list[Callable[[], Target]] = [
    one_hot,
    binary_floats,
    combinations,
    several_files,
    two_sorted_files,
    names,
    with_weights_in_between,
    one_at_a_time,
    some_ignored,
    cut_into_a_list,
]


@pytest.mark.parametrize("make", SORTED, ids=lambda make: make.__name__)
def test_sorted_labels_in_many_forms(make: Callable[[], Target]) -> None:
    result = judge(make())
    assert result.status == "fail", result


def test_the_scan_may_see_one_class_only() -> None:
    result = judge(only_the_first_class_scanned(), evidence={"samples": {"max-samples": 256}})
    assert result.status == "fail"
    assert "the first 256 samples are all of class `0`" in result.findings[0].message


class Drawn:
    """A batch sampler that makes its batches anew in every epoch."""

    def __init__(self, make: Callable[[], list[list[int]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.make())


def shuffled() -> Target:
    return Target(mlp(), DataLoader(TensorDataset(*samples(mixed())), batch_size=16, shuffle=True), CE)


def balanced_batches() -> Target:
    y = torch.arange(128) % 2
    pairs = [[*range(start, start + 16)] for start in range(0, 128, 16)]
    return Target(mlp(), DataLoader(TensorDataset(*samples(y)), batch_sampler=Drawn(lambda: pairs)), CE)  # type: ignore[arg-type]


def a_few_classes_per_batch() -> Target:
    y = torch.arange(20).repeat_interleave(16)

    def make() -> list[list[int]]:
        return [
            [16 * c + k for c in random.sample(range(20), 2) for k in random.sample(range(16), 8)]
            for _ in range(40)
        ]

    return Target(
        mlp(classes=20),
        DataLoader(TensorDataset(*samples(y)), batch_sampler=Drawn(make)),  # type: ignore[arg-type]
        CE,
    )


def sorted_by_length_that_tells_the_class() -> Target:
    y = mixed(512)
    lengths = (torch.randint(5, 40, (512,)) + 8 * y).tolist()
    order = sorted(range(512), key=lengths.__getitem__)

    def make() -> list[list[int]]:
        batches = [order[start : start + 16] for start in range(0, 512, 16)]
        random.shuffle(batches)
        return batches

    return Target(mlp(), DataLoader(TensorDataset(*samples(y)), batch_sampler=Drawn(make)), CE)  # type: ignore[arg-type]


def real_and_fake_in_turn() -> Target:
    batches = [(torch.randn(16, 8), torch.full((16, 1), float(number % 2))) for number in range(12)]
    return Target(mlp(classes=1), batches, torch.nn.BCEWithLogitsLoss())


def sorted_within_batches() -> Target:
    x, y = samples(mixed(320, classes=4))
    return Target(
        mlp(classes=4), [(x[i : i + 16], y[i : i + 16].sort().values) for i in range(0, 320, 16)], CE
    )


def one_batch() -> Target:
    return in_order(mixed().sort().values, batch_size=128)


def a_handful() -> Target:
    return in_order(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), batch_size=2)


def rare_class() -> Target:
    y = torch.zeros(256, dtype=torch.long)
    y[0] = 1
    return in_order(y)


def windows_of_a_rising_series() -> Target:
    series = torch.arange(300.0) / 30
    x = series.unfold(0, 8, 1)[:-1]
    return Target(
        mlp(classes=1),
        DataLoader(TensorDataset(x, series[8:].unsqueeze(1)), batch_size=16),
        torch.nn.MSELoss(),
    )


def group_numbers_beside_the_label() -> Target:
    x, y = samples(mixed())
    data = TensorDataset(x, y, torch.arange(128) // 32)
    return Target(
        mlp(),
        DataLoader(data, batch_size=16),
        training_step=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    )


HEALTHY: list[Callable[[], Target]] = [
    shuffled,
    balanced_batches,
    a_few_classes_per_batch,
    sorted_by_length_that_tells_the_class,
    real_and_fake_in_turn,
    sorted_within_batches,
    one_batch,
    a_handful,
    rare_class,
    windows_of_a_rising_series,
    group_numbers_beside_the_label,
]


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_what_is_meant_is_quiet(make: Callable[[], Target]) -> None:
    result = judge(make())
    assert result.status == "pass", result


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ((torch.randn(4, 8),), "no labels"),
        ((torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))), "one per position of a map"),
        ((torch.randint(0, 9, (4, 12)), torch.randint(0, 3, (4, 12))), "one per token"),
    ],
)
def test_labels_without_an_order_are_a_skip(batch: Any, reason: str) -> None:
    result = judge(Target(mlp(), [batch] * 4, CE))
    assert result.status == "skip"
    assert reason in (result.reason or "")


def test_thresholds_are_options() -> None:
    blocks = torch.arange(4).repeat_interleave(8).repeat(8)
    assert judge(in_order(blocks)).status == "pass"
    assert judge(in_order(blocks), checks={"label-order": {"max-excess": 0.2}}).status == "warn"
