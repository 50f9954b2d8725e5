"""Values and lengths: what stops training, and what only looks as if it would."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from debugkit import Target
from debugkit.registry import Registry, load
from debugkit.report import Result
from debugkit.testing import blobs, mlp, run_example


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


def table(samples: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = blobs(samples).dataset.tensors  # type: ignore[attr-defined]
    return x, y


def with_classes(x: torch.Tensor, y: torch.Tensor, model: nn.Module | None = None, **options: Any) -> Target:
    data = DataLoader(TensorDataset(x, y), batch_size=16, **options)
    return Target(model or mlp(), data, nn.CrossEntropyLoss())


def result_of(check: str, make: Callable[[], Target], registry: Registry) -> Result:
    return run_example(make, registry, select=check)[check]


def added_mask() -> Target:
    x, y = table()
    mask = torch.zeros(96, 8)
    mask[::3, 5:] = -math.inf

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"] * batch["bias"].softmax(1)), batch["labels"])

    rows = [{"x": a, "bias": b, "labels": c} for a, b, c in zip(x, mask, y, strict=True)]
    return Target(mlp(), DataLoader(rows, batch_size=16), training_step=step)  # type: ignore[arg-type]


def gaps_filled_by_the_model() -> Target:
    x, y = table()
    x[70, 3] = math.nan

    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.nan_to_num())

    return with_classes(x, y, Filled())


def gap(place: int) -> Target:
    x, y = table()
    x[place, 3] = math.nan
    return with_classes(x, y)


def lowest_number_as_mask() -> Target:
    x, y = table()
    mask = torch.zeros(96, 8)
    mask[::3, 5:] = torch.finfo(torch.float32).min
    data = DataLoader(TensorDataset(x, mask, y), batch_size=16)
    return Target(
        mlp(), data, training_step=lambda model, b: F.cross_entropy(model(b[0] * b[1].softmax(1)), b[2])
    )


@pytest.mark.parametrize("make", [added_mask, gaps_filled_by_the_model, lowest_number_as_mask])
def test_values_that_are_meant(make: Callable[[], Target], registry: Registry) -> None:
    result = result_of("finite-inputs", make, registry)
    assert result.status == "pass", result.findings


@pytest.mark.parametrize("place", [0, 90])
def test_one_gap_is_named(place: int, registry: Registry) -> None:
    (finding,) = result_of("finite-inputs", lambda: gap(place), registry).findings
    assert (finding.level, finding.where) == ("fail", f"train[{place}][0]")


def test_whole_numbers_are_said_to_be_finite(registry: Registry) -> None:
    ids = torch.randint(0, 9, (64, 5))
    model = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2))
    (finding,) = result_of(
        "finite-inputs", lambda: with_classes(ids, ids[:, 0] % 2, model), registry
    ).findings
    assert "whole numbers" in finding.message


def normalised(samples: int, *, spatial: bool = False, frozen: bool = False, **options: Any) -> Target:
    x, y = table(samples)
    first = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3)) if spatial else nn.Linear(8, 4)
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(first, norm, nn.ReLU(), nn.Flatten(), nn.Linear(24 if spatial else 4, 2))
    if frozen:
        norm.eval()
        norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    return with_classes(x, y, model, **options)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: normalised(97), "fail"),
        (lambda: normalised(98), "pass"),
        (lambda: normalised(97, drop_last=True), "pass"),
        (lambda: normalised(97, spatial=True), "pass"),
        (lambda: normalised(97, frozen=True), "pass"),
    ],
)
def test_a_last_batch_of_one(make: Callable[[], Target], status: str, registry: Registry) -> None:
    assert result_of("batch-consistency", make, registry).status == status


class Rows(Dataset[Any]):
    """Rows of a table, as many as it says."""

    def __init__(self, x: Any, y: Any, length: Callable[[Any], int]) -> None:
        self.x, self.y = x, y
        self.length = length

    def __len__(self) -> int:
        return self.length(self)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (lambda rows: len(rows.y), "pass"),
        (lambda rows: len(rows.y) - 1, "pass"),
        (lambda rows: rows.x.shape[1], "fail"),
        (lambda rows: len(rows.y) // 2, "warn"),
        (lambda rows: len(rows.y) + 20, "fail"),
    ],
    ids=["rows", "one less", "columns", "half", "too many"],
)
def test_length_of_a_data_set(length: Any, status: str, registry: Registry) -> None:
    def make() -> Target:
        data = DataLoader(Rows(*table(), length), batch_size=8)
        return Target(mlp(), data, nn.CrossEntropyLoss())

    assert result_of("batch-consistency", make, registry).status == status


def test_the_next_step_of_a_series_is_no_missing_row(registry: Registry) -> None:
    series = torch.randn(120, 8)
    data = DataLoader(Rows(series, series[1:], lambda rows: len(rows.y)), batch_size=16)
    result = result_of("batch-consistency", lambda: Target(mlp(classes=8), data, nn.MSELoss()), registry)
    assert result.status == "pass", result.findings


def test_rows_without_a_partner(registry: Registry) -> None:
    x, y = table()
    data = DataLoader(Rows(x, y[:80], lambda rows: len(rows.y)), batch_size=16)
    result = result_of("batch-consistency", lambda: Target(mlp(), data, nn.CrossEntropyLoss()), registry)
    assert result.status == "warn"


class Stream(IterableDataset[Any]):
    def __init__(self, claimed: int) -> None:
        self.claimed = claimed

    def __len__(self) -> int:
        return self.claimed

    def __iter__(self) -> Iterator[Any]:
        yield from zip(*table(), strict=True)


@pytest.mark.parametrize(("claimed", "status"), [(96, "pass"), (400, "fail")])
def test_length_of_a_stream(claimed: int, status: str, registry: Registry) -> None:
    data = DataLoader(Stream(claimed), batch_size=16)
    result = result_of("batch-consistency", lambda: Target(mlp(), data, nn.CrossEntropyLoss()), registry)
    assert result.status == status


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataLoader(TensorDataset(*table(10)), batch_size=16, drop_last=True), "drop_last=True"),
        (DataLoader([], batch_size=4), "0 samples"),
        ([], "is empty"),
    ],
)
def test_nothing_to_read(data: Any, said: str, registry: Registry) -> None:
    result = result_of("batch-consistency", lambda: Target(mlp(), data, nn.CrossEntropyLoss()), registry)
    assert result.status == "fail"
    assert said in result.findings[0].message


def packed(items: list[Any]) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([3 + number % 3 for number in range(len(items))])
    return {
        "ids": torch.arange(int(lengths.sum()))[None] % 50,
        "starts": F.pad(lengths.cumsum(0), (1, 0)),
        "labels": torch.arange(int(lengths.sum()))[None] % 2,
    }


def shared_mask(items: list[Any]) -> dict[str, torch.Tensor]:
    x = torch.stack([x for x, _ in items])
    return {
        "x": x,
        "mask": torch.ones(8),
        "weights": torch.ones(2),
        "labels": torch.tensor([int(y) for _, y in items]),
    }


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_lengths_of_their_own_are_no_fault(kind: str, registry: Registry) -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        if kind == "packed":
            return F.cross_entropy(model(F.one_hot(batch["ids"][0] % 8, 8).float()), batch["labels"][0])
        return F.cross_entropy(model(batch["x"] * batch["mask"]), batch["labels"], batch["weights"])

    data = DataLoader(
        TensorDataset(*table()), batch_size=8, collate_fn=packed if kind == "packed" else shared_mask
    )
    result = result_of("batch-consistency", lambda: Target(mlp(), data, training_step=step), registry)
    assert result.status == "pass", result.findings
