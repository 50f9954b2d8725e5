"""Repeats and leaks that are none, and some that are hard to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from debugkit import Target
from debugkit.registry import Registry, load
from debugkit.report import Result
from debugkit.testing import blobs, mlp, run_example

CROSS_ENTROPY = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


def table(samples: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = blobs(samples).dataset.tensors  # type: ignore[attr-defined]
    return x, y


def target(train: Any, evaluation: Any = None, step: Any = None) -> Target:
    return Target(mlp(), train, None if step else CROSS_ENTROPY, training_step=step, eval_loader=evaluation)


def loader(*columns: Any, **options: Any) -> DataLoader[Any]:
    data = columns[0] if isinstance(columns[0], Dataset) else TensorDataset(*columns)
    return DataLoader(data, batch_size=16, **{"shuffle": "sampler" not in options, **options})


def weighted() -> Target:
    x, y = table()
    return target(loader(x, y, sampler=WeightedRandomSampler([1.0 + 9 * int(label) for label in y], 400)))


def drawn_with_replacement() -> Target:
    data = TensorDataset(*table())
    return target(loader(data, sampler=RandomSampler(data, replacement=True, num_samples=600)))


def bootstrap() -> Target:
    data = TensorDataset(*table())
    return target(loader(Subset(data, torch.randint(0, 200, (200,)).tolist())))


def rare_class_copied() -> Target:
    x, y = table()
    rare = (y == 1).nonzero().flatten()
    kept = torch.cat([(y == 0).nonzero().flatten(), rare[:30].repeat(3)])
    return target(loader(x[kept], y[kept]))


def several_annotators() -> Target:
    x, y = table(100)
    votes = y.repeat_interleave(3)
    votes[::20] = 1 - votes[::20]
    return target(loader(x.repeat_interleave(3, 0), votes))


class Endless:
    """Goes through its data again and again."""

    def __init__(self, *columns: torch.Tensor) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[Any]:
        for _ in range(20):
            yield from loader(*self.columns)


class Endlessly:
    """Draws rows at random for ever."""

    def __init__(self, *columns: torch.Tensor) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[Any]:
        while True:
            drawn = torch.randint(len(self.columns[0]), (16,))
            yield tuple(column[drawn] for column in self.columns)


def drawn_for_ever() -> Target:
    return target(Endlessly(*table()))


def the_same_batch_again() -> Target:
    x, y = table(16)
    return target([(x, y)] * 10)


def latent_code_per_sample() -> Target:
    grid = torch.randn(8)
    rows = [{"index": number, "grid": grid, "value": torch.randn(2)} for number in range(64)]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch["grid"]) * batch["index"][:, None] - batch["value"]).pow(2).mean()

    return target(DataLoader(rows, batch_size=16), step=step)  # type: ignore[arg-type]


class Graphs:
    """Batches of nodes without features of their own."""

    def __iter__(self) -> Iterator[Any]:
        for nodes in range(20, 30):
            yield {
                "x": torch.ones(nodes, 8),
                "edges": torch.zeros(2, 50).long(),
                "y": torch.arange(nodes) % 2,
            }


def graphs() -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return CROSS_ENTROPY(model(batch["x"]), batch["y"])

    return target(Graphs(), step=step)


def toy() -> Target:
    x, y = table(4)
    return target(loader(x.repeat(32, 1), y.repeat(32)))


@pytest.mark.parametrize(
    "make",
    [
        weighted,
        drawn_with_replacement,
        bootstrap,
        rare_class_copied,
        several_annotators,
        lambda: target(Endless(*table(64))),
        drawn_for_ever,
        the_same_batch_again,
        latent_code_per_sample,
        graphs,
        toy,
    ],
)
def test_repeats_that_are_meant(make: Callable[[], Target], registry: Registry) -> None:
    assert repeats(make, registry).status in ("pass", "skip")


def repeats(make: Callable[[], Target], registry: Registry) -> Result:
    return run_example(make, registry, select="duplicate-samples")["duplicate-samples"]


def leaks(make: Callable[[], Target], registry: Registry) -> Result:
    return run_example(make, registry, select="train-eval-leakage")["train-eval-leakage"]


class Chosen(Dataset[Any]):
    """The sample that a function picks for an index."""

    def __init__(self, pick: Callable[[int], int], count: int = 200) -> None:
        self.x, self.y = table(count)
        self.pick = pick

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[self.pick(index)], self.y[self.pick(index)]


@pytest.mark.parametrize(
    ("pick", "status"), [(lambda i: i, "pass"), (lambda i: 0, "fail"), (lambda i: i // 4, "warn"), (lambda i: i % 32, "warn")]
)  # fmt: skip
def test_an_index_that_is_not_used_as_it_is(pick: Any, status: str, registry: Registry) -> None:
    assert repeats(lambda: target(loader(Chosen(pick))), registry).status == status


def test_few_samples_are_too_few(registry: Registry) -> None:
    result = repeats(lambda: target(loader(*table(6))), registry)
    assert (result.status, "at least 8" in (result.reason or "")) == ("skip", True)


def test_finding_names_the_places(registry: Registry) -> None:
    x, y = table(60)
    x, y = torch.cat([x, x[5:15]]), torch.cat([y, y[5:15]])
    (finding,) = repeats(lambda: target(loader(x, y)), registry).findings
    assert finding.measured["repeats"] == 10
    one, other = finding.message.partition("train[")[2].partition("]")[0], finding.message.split("train[")[2]
    assert int(other.partition("]")[0]) - int(one) == 55


class Fresh(Dataset[Any]):
    """Samples that are made up when they are asked for."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> Any:
        x = torch.randn(8)
        return x, int(x.sum() > 0)


def split_parts() -> Target:
    train, held_out = random_split(TensorDataset(*table()), [0.8, 0.2])
    return target(loader(train), loader(held_out))


def fresh_samples() -> Target:
    data = loader(Fresh())
    return target(data, data)


def folds() -> Target:
    parts = [TensorDataset(x, y) for x, y in zip(*(column.chunk(5) for column in table()), strict=True)]
    return target(loader(ConcatDataset(parts[:4])), loader(parts[4]))


def few_categories() -> Target:
    x = torch.randint(0, 2, (400, 8)).float()
    y = x.sum(1).long() % 2
    return target(loader(x[:300], y[:300]), loader(x[300:], y[300:]))


def windows(at_random: bool) -> Target:
    series = torch.randn(600, 2).cumsum(0)
    cut = series.unfold(0, 17, 1).transpose(1, 2)
    order = torch.randperm(len(cut)) if at_random else torch.arange(len(cut))
    x, y = cut[order][:, :16], cut[order][:, 16]
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    return Target(model, loader(x[:450], y[:450]), nn.MSELoss(), eval_loader=loader(x[450:], y[450:]))


@pytest.mark.parametrize("make", [split_parts, fresh_samples, folds, few_categories, lambda: windows(False)])
def test_splits_that_share_nothing(make: Callable[[], Target], registry: Registry) -> None:
    result = leaks(make, registry)
    assert result.status == "pass", result.findings


def noisy() -> Target:
    x, y = table()
    x, y = torch.cat([x, x + 0.002 * torch.randn_like(x)]), torch.cat([y, y])
    order = torch.randperm(400)
    return target(loader(x[order[:320]], y[order[:320]]), loader(x[order[320:]], y[order[320:]]))


def rows_in_other_order() -> Target:
    x, y = table()
    return target(loader(x, y), loader(x.flip(0).clone(), y.flip(0).clone()))


@pytest.mark.parametrize(
    ("make", "status"),
    [(lambda: windows(True), "warn"), (noisy, "warn"), (rows_in_other_order, "fail")],
)
def test_leaks(make: Callable[[], Target], status: str, registry: Registry) -> None:
    assert leaks(make, registry).status == status


def test_without_an_evaluation_split_there_is_nothing_to_compare(registry: Registry) -> None:
    assert leaks(lambda: target(loader(*table())), registry).status == "skip"
