"""Two epochs in a row, the same samples fetched again, and what workers give twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from debugkit import Target
from debugkit.errors import Unavailable
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.epochs import Epochs, _Limits, _read
from debugkit.probes.fetches import Fetches, Reset
from debugkit.probes.worker_copies import WorkerCopies
from debugkit.sandbox import Sandbox


def collect(kind: Any, loader: Any) -> Any:
    target = Target(torch.nn.Linear(2, 2), loader, torch.nn.CrossEntropyLoss())
    with Sandbox(target) as sandbox:
        ledger = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline(None)})
        try:
            return ledger.get(kind)
        finally:
            ledger.release()


def rows(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=g), torch.randint(0, 2, (count,), generator=g)


class Stream(IterableDataset[Any]):
    """All rows; ``order`` arranges their places from the number of the epoch."""

    def __init__(self, order: Callable[[int, list[int]], None], shared: bool = False) -> None:
        self.order, self.shared, self.epoch = order, shared, 0

    def __iter__(self) -> Iterator[Any]:
        x, y = rows()
        info = get_worker_info()
        places = list(range(64))
        if self.shared and info is not None:
            places = places[info.id :: info.num_workers]
        self.order(self.epoch, places)
        for place in places:
            yield x[place], y[place]
        self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def as_stored(epoch: int, places: list[int]) -> None:
    """Leave the places as they are."""


def by_epoch(epoch: int, places: list[int]) -> None:
    random.Random(epoch).shuffle(places)


def anew(epoch: int, places: list[int]) -> None:
    random.shuffle(places)


class Told(Stream):
    """Knows the epoch only when it is told."""

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        yield from super().__iter__()
        self.epoch = epoch


class Untold(Told):
    """Can't be told the epoch."""

    set_epoch = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("loader", "order", "source"),
    [
        (DataLoader(TensorDataset(*rows()), batch_size=8), "same", "map"),
        (DataLoader(TensorDataset(*rows()), batch_size=8, shuffle=True), "changes", "map"),
        (DataLoader(TensorDataset(*rows(4)), batch_size=2), "unknown", "map"),
        (DataLoader(Untold(as_stored), batch_size=8), "same", "stream"),
        (DataLoader(Stream(anew), batch_size=8), "changes", "stream"),
        (DataLoader(Stream(by_epoch), batch_size=8), "changes", "stream"),
        (DataLoader(Told(by_epoch), batch_size=8), "told", "stream"),
        (DataLoader(Untold(by_epoch), batch_size=8), "same", "stream"),
        (DataLoader(Stream(by_epoch, shared=True), batch_size=8, num_workers=2), "told", "stream"),
        ([(torch.randn(4, 2), torch.zeros(4))], "same", "list"),
    ],
)
def test_order(loader: Any, order: str, source: str) -> None:
    found = collect(Epochs, loader)
    assert (found.order, found.source) == (order, source), found.said


def test_places_are_told_where_a_sampler_draws() -> None:
    found = collect(Epochs, DataLoader(TensorDataset(*rows()), batch_size=8))
    assert found.places == list(range(64))
    assert (found.batches, found.samples) == (8, 64)


def test_an_iterator_has_no_second_epoch() -> None:
    with pytest.raises(Unavailable, match="reads from a `zip`"):
        collect(Epochs, zip(*rows(), strict=True))


class Noisy(Dataset[Any]):
    def __init__(self, noise: Callable[[], torch.Tensor]) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 64

    def __getitem__(self, place: int) -> Any:
        x, y = rows()
        return x[place] + 0.01 * self.noise(), y[place]


def test_what_is_random_and_how() -> None:
    plain = collect(Fetches, DataLoader(TensorDataset(*rows()), batch_size=8))
    assert (plain.random, plain.recognised, plain.resets) == (frozenset(), True, {})
    noisy = collect(Fetches, DataLoader(Noisy(lambda: torch.randn(2)), batch_size=8))
    assert (noisy.random, noisy.recognised) == (frozenset({"[0]"}), True)
    made_up = collect(Fetches, DataLoader(Noisy(lambda: 1000 * torch.randn(2)), batch_size=8))
    assert not made_up.recognised


@pytest.mark.parametrize("workers", [0, 1])
def test_a_seed_in_every_fetch(workers: int) -> None:
    def seeded() -> torch.Tensor:
        torch.manual_seed(0)
        random.seed(0)
        return torch.randn(2)

    found = collect(Fetches, DataLoader(Noisy(seeded), batch_size=8, num_workers=workers))
    assert found.resets == {"torch": Reset(same=True, drawn=True), "python": Reset(same=True, drawn=False)}


def test_a_generator_that_is_copied_to_workers() -> None:
    g = torch.Generator().manual_seed(0)
    data = Noisy(lambda: torch.randn(2, generator=g))
    found = collect(Fetches, DataLoader(data, batch_size=8, num_workers=2))
    assert found.across_workers == found.across_epochs == {"[0]"}
    one = collect(Fetches, DataLoader(data, batch_size=8, num_workers=1))
    assert (one.across_workers, one.across_epochs) == (frozenset(), frozenset({"[0]"}))


def test_streams_are_not_fetched() -> None:
    with pytest.raises(Unavailable, match="no `DataLoader` over a map-style data set"):
        collect(Fetches, DataLoader(Stream(as_stored), batch_size=8))


@pytest.mark.parametrize("order", [as_stored, anew])
@pytest.mark.parametrize("shared", [True, False])
def test_copies(order: Callable[[int, list[int]], None], shared: bool) -> None:
    found = collect(WorkerCopies, DataLoader(Stream(order, shared), batch_size=8, num_workers=2))
    assert found.copies == (1 if shared else 2)
    assert found.distinct == 64


def test_copies_need_workers() -> None:
    with pytest.raises(Unavailable, match="several workers"):
        collect(WorkerCopies, DataLoader(Stream(as_stored), batch_size=8))


class SlowToStart(IterableDataset[Any]):
    """The first row takes longer than a reader is willing to wait for an epoch."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        time.sleep(0.05)
        yield from torch.arange(64.0)[:, None]


def test_a_slow_start_is_no_empty_epoch() -> None:
    loader = DataLoader(SlowToStart(), batch_size=8)
    found = _read(loader, loader, _Limits(draws=100, samples=128, seconds=0.01))
    assert found.order == "unknown", found
