"""Loaders of every kind, healthy and awkward: one clear sentence, and the other checks go on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from debugkit import Report, Target
from debugkit.data.stream import KEPT_BATCHES
from debugkit.errors import Broken, Unavailable
from debugkit.probes.stream import TrainStream
from debugkit.registry import Registry
from debugkit.runner import Run
from debugkit.sandbox import Sandbox

BATCH = (torch.randn(4, 8), torch.arange(4) % 2)


def target_of(loader: Any) -> Target:
    return Target(nn.Sequential(nn.Linear(8, 2)), loader, nn.CrossEntropyLoss())


def read(loader: Any, seconds: float = 5.0, timeout: float = 5.0) -> list[Any]:
    target = target_of(loader)
    with Sandbox(target) as sandbox:
        return list(TrainStream.collect(target, sandbox, timeout=timeout).batches(seconds))


def run(loader: Any, registry: Registry, *settings: str) -> Report:
    target = target_of(loader)
    return Run(target, config={"max-cost": "backward"}, settings=settings, registry=registry).execute()


def failing_after(count: int, error: type[Exception] = OSError) -> Iterator[Any]:
    yield from [BATCH] * count
    raise error("disk on fire")


class Failing:
    """A loader that can be opened again, and raises at its third batch each time."""

    def __iter__(self) -> Iterator[Any]:
        return failing_after(2)


class Hanging:
    def __init__(self, good: int = 0) -> None:
        self.good = good

    def __iter__(self) -> Iterator[Any]:
        yield from [BATCH] * self.good
        while True:
            try:
                time.sleep(60)
            except Exception:  # a data set that skips what it can't read
                continue


class Endless:
    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(BATCH)


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        if index >= 16:
            raise IndexError
        return torch.randn(8), index % 2


class Shards(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((torch.randn(8), i % 2) for i in range(16))


def test_the_prefix_is_kept_and_the_rest_passed_through() -> None:
    loader = DataLoader(TensorDataset(torch.arange(40.0).view(40, 1), torch.zeros(40)), batch_size=4)
    target = target_of(loader)
    with Sandbox(target) as sandbox:
        stream = TrainStream.collect(target, sandbox)
        assert len(stream.prefix(2)) == 2
        assert len(stream.prefix(99)) == KEPT_BATCHES
        seen = torch.cat([x for x, _ in stream.batches(5.0)])
        assert torch.equal(seen, torch.arange(40.0).view(40, 1))
        assert stream.finished


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "yields no batch: it is empty"),
        (DataLoader(Rows(), batch_size=32, drop_last=True), "yields no batch: it is empty"),
        ([(torch.zeros(0, 8), torch.zeros(0))], "yields an empty batch (batch 0)"),
        (Failing(), "raised at batch 2 (counting from 0): OSError: disk on fire"),
        (Hanging(), "gave no batch 0 within 0.2 s"),
        (Hanging(good=2), "gave no batch 2 within 0.2 s"),
        (Rows(), "is a data set that yields single samples; wrap it in a DataLoader"),
        (Shards(), "is a data set that yields single samples; wrap it in a DataLoader"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_broken_loader_gives_one_sentence(loader: Any, message: str) -> None:
    with pytest.raises(Broken) as caught:
        read(loader, timeout=0.2)
    assert str(caught.value) == f"`train_loader` {message}"


def test_a_loader_that_can_not_be_opened() -> None:
    class Closed:
        def __iter__(self) -> Iterator[Any]:
            raise PermissionError("locked")

    with pytest.raises(Broken, match=r"^`train_loader` can't be iterated: PermissionError: locked$"):
        read(Closed())


def test_no_loader_is_unavailable() -> None:
    target = Target(nn.Linear(8, 2))
    with Sandbox(target) as sandbox, pytest.raises(Unavailable, match="the target has no data"):
        TrainStream.collect(target, sandbox)


def test_the_batches_before_a_failure_are_used() -> None:
    target = target_of(Failing())
    with Sandbox(target) as sandbox:
        stream = TrainStream.collect(target, sandbox)
        assert len(stream.prefix(4)) == 2
        with pytest.raises(Broken, match="raised at batch 2"):
            list(stream.batches(5.0))


@pytest.mark.parametrize("loader", [Failing(), Hanging(good=2)], ids=["raises", "hangs"])
def test_checks_that_need_two_batches_still_run(loader: Any, registry: Registry) -> None:
    report = run(loader, registry, "train-stream.timeout=0.3")
    assert report["logits-vs-probs"].status == "pass"
    scan = report["label-balance"]
    assert scan.status == "error"
    assert scan.reason is not None
    assert scan.reason.startswith("`train_loader` ")
    assert "\n" not in scan.reason
    assert report.exit_code() == 2


def test_an_empty_loader_leaves_the_checks_of_the_model(registry: Registry) -> None:
    report = run([], registry)
    broken = [result for result in report.results if result.status == "error"]
    assert {result.reason for result in broken} == {"`train_loader` yields no batch: it is empty"}
    assert report.exit_code() == 2


@pytest.mark.parametrize("make", [Endless, lambda: itertools.cycle([BATCH])], ids=["loader", "iterator"])
def test_endless_data_is_read_in_part(make: Callable[[], Any], registry: Registry) -> None:
    report = run(make(), registry)
    assert report["logits-vs-probs"].status == "pass"
    assert not report.counts["error"]


def test_endless_data_stops_with_the_time() -> None:
    start = time.monotonic()
    assert len(read(Endless(), seconds=0.2)) > KEPT_BATCHES
    assert time.monotonic() - start < 2


def test_what_can_not_be_rewound_is_said(registry: Registry) -> None:
    batches = (BATCH for _ in range(6))
    report = run(batches, registry)
    assert report["logits-vs-probs"].status == "pass"
    assert [notice for notice in report.notices if "`generator`, which can't be rewound" in notice]


def test_a_generator_inside_a_data_set_is_said(registry: Registry) -> None:
    class Wrapped(IterableDataset[Any]):
        def __init__(self) -> None:
            self.source = ((torch.randn(8), i % 2) for i in range(64))

        def __iter__(self) -> Iterator[Any]:
            return self.source

    report = run(DataLoader(Wrapped(), batch_size=4), registry)
    assert [notice for notice in report.notices if "can't be rewound" in notice]


@pytest.mark.parametrize("loader", [[BATCH] * 4, DataLoader(Rows(), 4)], ids=["list", "DataLoader"])
def test_what_can_be_rewound_needs_no_notice(loader: Any, registry: Registry) -> None:
    assert run(loader, registry).notices == ()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("data", [Rows(), Shards()], ids=["map", "iterable"])
def test_workers(data: Dataset[Any], persistent: bool, registry: Registry) -> None:
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=persistent)
    report = run(loader, registry)
    assert not report.counts["error"]
    assert loader._iterator is None


def test_the_users_own_workers_are_not_disturbed(registry: Registry) -> None:
    loader = DataLoader(Rows(), batch_size=4, num_workers=1, persistent_workers=True)
    half_read = iter(loader)
    next(half_read)
    report = run(loader, registry)
    assert not report.counts["error"]
    assert loader._iterator is half_read
    assert len(list(half_read)) == 3
    half_read._shutdown_workers()  # type: ignore[attr-defined]


def test_an_alarm_that_someone_else_set_is_left_alone() -> None:
    import signal

    signal.setitimer(signal.ITIMER_REAL, 30.0)
    try:
        assert len(read([BATCH] * 3)) == 3
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_places_behind_the_loader_of_accelerate() -> None:
    data_loader = pytest.importorskip("accelerate.data_loader")
    rows = torch.arange(40.0)[:, None]
    loader = data_loader.prepare_data_loader(DataLoader(TensorDataset(rows), batch_size=8, shuffle=True))
    assert type(loader).__name__ == "DataLoaderShard"
    target = target_of(loader)
    with Sandbox(target) as sandbox:
        stream = TrainStream.collect(target, sandbox)
        values = torch.cat([batch[0] for batch in stream.batches(5.0)]).flatten()
    assert stream.indices is not None
    places = [place for batch in stream.indices for place in batch]
    assert values.tolist() == [float(place) for place in places]
    assert sorted(places) == [*range(40)]
    assert loader.iteration == 0
