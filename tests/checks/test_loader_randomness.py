"""loader-randomness beyond its own examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.dataloader import default_collate

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import mlp

CE = torch.nn.CrossEntropyLoss()
Tensor = torch.Tensor


def judge(loader: Any, loss: Any = CE, **more: Any) -> Result:
    return debugkit.run(Target(mlp(), loader, loss, **more), select="loader-randomness")["loader-randomness"]


def said(result: Result) -> str:
    return "\n".join(finding.message for finding in result.findings)


def rows(count: int = 64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (count,), generator=g)
    return torch.randn(count, 8, generator=g) + 3 * y.unsqueeze(1), y


class Changed(Dataset[Any]):
    """Rows changed by ``change(row, place)``."""

    def __init__(self, change: Callable[[Tensor, int], Tensor]) -> None:
        self.x, self.y = rows()
        self.change = change

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, place: int) -> Any:
        return self.change(self.x[place], place), self.y[place]


def torch_noise(x: Tensor, place: int) -> Tensor:
    return x + 0.1 * torch.randn(8)


def numpy_noise(x: Tensor, place: int) -> Tensor:
    return x + 0.1 * torch.from_numpy(np.random.randn(8)).float()


def rare_flip(x: Tensor, place: int) -> Tensor:
    return x.flip(0) if random.random() < 0.1 else x


def same_noise_for_image_and_mask(x: Tensor, place: int) -> Tensor:
    seed = np.random.randint(2**31)
    torch.manual_seed(seed)
    noise = torch.randn(8)
    torch.manual_seed(seed)
    return x + 0.1 * noise + 0 * torch.randn(8)


def noise_of_the_place(x: Tensor, place: int) -> Tensor:
    return x + 0.1 * torch.randn(8, generator=torch.Generator().manual_seed(place))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "change",
    [torch_noise, numpy_noise, rare_flip, same_noise_for_image_and_mask, noise_of_the_place],
    ids=lambda change: change.__name__,
)
def test_healthy_augmentation(change: Callable[[Tensor, int], Tensor], workers: int) -> None:
    loader = DataLoader(Changed(change), batch_size=16, shuffle=True, num_workers=workers)
    result = judge(loader)
    assert result.status == "pass", result


class Lazy(Dataset[Any]):
    """Makes its data on first use, from a seed."""

    def __init__(self) -> None:
        self.data: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return 64

    def __getitem__(self, place: int) -> Any:
        if self.data is None:
            torch.manual_seed(0)
            self.data = (torch.randn(64, 8), torch.arange(64) % 2)
        return self.data[0][place], self.data[1][place]


class Fresh(Dataset[Any]):
    """Samples made up anew for each place, of the class that the place has."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, place: int) -> Any:
        return torch.randn(8) + 3 * (place % 2), place % 2


class Stream(IterableDataset[Any]):
    """Shuffled rows, shared out among workers."""

    def __iter__(self) -> Iterator[Any]:
        x, y = rows()
        info = get_worker_info()
        places = list(range(64) if info is None else range(64)[info.id :: info.num_workers])
        random.shuffle(places)
        yield from ((x[place], y[place]) for place in places)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            x = torch.randn(8)
            yield x, int(x[0] > 0)


class EndlessSampler(Sampler[int]):
    """One endless epoch from a fixed seed, as detection libraries have it."""

    def __iter__(self) -> Iterator[int]:
        g = torch.Generator().manual_seed(0)
        while True:
            yield from torch.randperm(64, generator=g).tolist()


def data() -> TensorDataset:
    return TensorDataset(*rows())


HEALTHY: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(data(), batch_size=16, shuffle=True),
    "seeded once": lambda: DataLoader(
        data(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0)
    ),
    "weighted": lambda: DataLoader(
        data(), batch_size=16, sampler=WeightedRandomSampler(torch.ones(64).tolist(), 64)
    ),
    "distributed": lambda: DataLoader(data(), batch_size=8, sampler=DistributedSampler(data(), 2, 0)),
    "endless sampler": lambda: DataLoader(data(), batch_size=16, sampler=EndlessSampler()),
    "lazy": lambda: DataLoader(Lazy(), batch_size=16, shuffle=True),
    "lazy in workers": lambda: DataLoader(Lazy(), batch_size=16, shuffle=True, num_workers=2),
    "made up": lambda: DataLoader(Fresh(), batch_size=16),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
    "stream in workers": lambda: DataLoader(Stream(), batch_size=8, num_workers=2),
    "endless": lambda: DataLoader(Endless(), batch_size=32),
    "endless in workers": lambda: DataLoader(Endless(), batch_size=32, num_workers=2),
    "list of batches": lambda: [(torch.randn(16, 8), torch.randint(0, 2, (16,)))] * 4,
    "one batch": lambda: DataLoader(data(), batch_size=64),
    "a handful": lambda: DataLoader(TensorDataset(*rows(6)), batch_size=2),
    "batches as samples": lambda: DataLoader(
        [(x, y) for x, y in zip(*(t.split(8) for t in rows()), strict=True)], batch_size=None, shuffle=True
    ),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_healthy_loaders(make: Callable[[], Any]) -> None:
    result = judge(make())
    assert result.status == "pass", result


def test_windows_of_a_series_come_in_order() -> None:
    series = torch.randn(200, generator=torch.Generator().manual_seed(0)).cumsum(0)
    windows = TensorDataset(series.unfold(0, 8, 1)[:-1], series[8:].unsqueeze(1))
    result = judge(DataLoader(windows, batch_size=16), torch.nn.MSELoss())
    assert result.status == "pass"
    assert "windows of a series" in said(result)


def test_running_text_comes_in_order() -> None:
    ids = torch.randint(0, 40, (65 * 16 + 1,), generator=torch.Generator().manual_seed(0))
    pieces = TensorDataset(ids[:-1].view(-1, 16), ids[1:].view(-1, 16))
    model = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 40))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    target = Target(model, DataLoader(pieces, batch_size=8), loss)
    result = debugkit.run(target, select="loader-randomness")["loader-randomness"]
    assert result.status == "pass"
    assert "running text" in said(result)


def test_sorted_labels_are_left_to_label_order() -> None:
    x, y = rows()
    order = y.argsort()
    result = judge(DataLoader(TensorDataset(x[order], y[order]), batch_size=8))
    assert result.status == "pass"
    assert "label-order" in said(result)


class Wrapper:
    """Hands on the batches of a loader."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


class ShuffledAgain(Wrapper):
    """Hands on the batches of a loader in another order."""

    def __iter__(self) -> Iterator[Any]:
        batches = [*self.loader]
        random.shuffle(batches)
        yield from batches


def test_a_wrapper_is_looked_through_and_believed() -> None:
    assert judge(Wrapper(DataLoader(data(), batch_size=8))).status == "warn"
    assert judge(ShuffledAgain(DataLoader(data(), batch_size=8))).status == "pass"


class Forgetful(Sampler[int]):
    """Seeds torch's global generator wherever an epoch begins."""

    def __iter__(self) -> Iterator[int]:
        torch.manual_seed(42)
        return iter(torch.randperm(64).tolist())

    def __len__(self) -> int:
        return 64


def test_a_sampler_that_seeds_itself() -> None:
    result = judge(DataLoader(data(), batch_size=16, sampler=Forgetful()))
    assert result.status == "warn"
    assert "`Forgetful` draws the same permutation" in said(result)


@pytest.mark.parametrize(
    "generator", [np.random.default_rng(0), random.Random(0), torch.Generator().manual_seed(0)]
)
def test_a_generator_of_the_data_set(generator: Any) -> None:
    def change(x: Tensor, place: int) -> Tensor:
        if isinstance(generator, torch.Generator):
            return x + 0.1 * torch.randn(8, generator=generator)
        return x.flip(0) if generator.random() < 0.5 else x

    loader = DataLoader(Changed(change), batch_size=16, shuffle=True, num_workers=2)
    assert judge(loader).status == "fail"
    assert judge(DataLoader(Changed(change), batch_size=16, shuffle=True)).status == "pass"


def test_the_next_epoch_repeats() -> None:
    def seed(worker: int) -> None:
        np.random.seed(worker)

    change = Changed(numpy_noise)
    options: dict[str, Any] = {"batch_size": 16, "num_workers": 2, "worker_init_fn": seed}
    assert judge(DataLoader(change, shuffle=True, **options)).status == "warn"
    assert judge(DataLoader(change, shuffle=True, persistent_workers=True, **options)).status == "pass"
    in_order = judge(DataLoader(change, **options))
    assert in_order.status == "fail"
    assert "repeats in every epoch" in said(in_order)


def seeded_collate(items: list[Any]) -> Any:
    torch.manual_seed(0)
    x, y = default_collate(items)
    return x + 0.1 * torch.randn_like(x), y


@pytest.mark.parametrize("workers", [0, 1])
def test_seeding_where_batches_are_made(workers: int) -> None:
    loader = DataLoader(data(), batch_size=16, shuffle=True, collate_fn=seeded_collate, num_workers=workers)
    result = judge(loader)
    assert result.status == "fail"
    assert "torch's global generator" in said(result)


class Shuffling(IterableDataset[Any]):
    """Every worker gives everything, in an order of its own."""

    def __iter__(self) -> Iterator[Any]:
        x, y = rows()
        yield from ((x[place], y[place]) for place in torch.randperm(64).tolist())


def test_copies_in_different_orders() -> None:
    result = judge(DataLoader(Shuffling(), batch_size=8, num_workers=2))
    assert result.status == "fail"
    assert "2 times, once from each of the 2 workers (64 different samples among 128)" in said(result)


class OpenedOnce(IterableDataset[Any]):
    """Goes on where it stopped."""

    def __init__(self) -> None:
        self.x, self.y = rows()
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < len(self.y):
            self.at += 1
            yield self.x[self.at - 1], self.y[self.at - 1]


class Closes:
    """Can't be read again."""

    def __init__(self) -> None:
        self.reads = 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        if self.reads > 1:
            raise ValueError("I/O operation on closed file")
        x, y = rows()
        order = torch.randperm(64)
        yield from zip(x[order].split(8), y[order].split(8), strict=True)


def test_no_second_epoch() -> None:
    result = judge(DataLoader(OpenedOnce(), batch_size=8))
    assert result.status == "warn"
    assert "the second epoch is empty" in said(result)
    result = judge(Closes())
    assert result.status == "fail"
    assert "the second epoch raises: ValueError: I/O operation on closed file" in said(result)


def test_one_epoch_is_enough_where_no_more_are_planned() -> None:
    result = judge(Closes(), training_steps=8)
    assert result.status == "pass"


def test_what_can_be_read_once_is_a_skip() -> None:
    x, y = rows()
    result = judge(pair for pair in zip(x.split(8), y.split(8), strict=True))
    assert result.status == "skip"
    assert "only once" in (result.reason or "")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_as_if_nothing_was_read(workers: int) -> None:
    def make() -> DataLoader[Any]:
        torch.manual_seed(3)
        np.random.seed(3)
        state = np.random.RandomState(0)
        change = Changed(lambda x, place: x + torch.from_numpy(state.randn(8)).float() + torch.randn(8))
        generator = torch.Generator().manual_seed(1)
        return DataLoader(change, batch_size=16, shuffle=True, num_workers=workers, generator=generator)

    loader = make()
    expected = [x for _ in range(2) for x, _ in loader]
    loader = make()
    judge(loader)
    seen = [x for _ in range(2) for x, _ in loader]
    assert all(torch.equal(one, other) for one, other in zip(expected, seen, strict=True))
