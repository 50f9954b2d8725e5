"""Two epochs of the training data, one after the other: whether the order of the samples changes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch.utils.data import DataLoader

from debugkit.data.loaders import (
    draw,
    inner_loader,
    is_map_style,
    places,
    standing_alone,
    stop_workers,
    with_set_epoch,
)
from debugkit.data.rows import RowReader
from debugkit.data.stream import _time_limit
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost, Deadline
from debugkit.probes.fetches import Fetches
from debugkit.probes.samples import Samples
from debugkit.sandbox import Sandbox
from debugkit.target import Target

Source = Literal["list", "map", "stream", "else"]
Order = Literal["changes", "same", "told", "lost", "ends", "raises", "unknown"]

_FEWEST = 8
_ENOUGH_LABELS = 32
_COMPARED = 64
_LATE_EPOCH = 7
_WAIT = 10.0


@dataclass(frozen=True, eq=False)
class Epochs:
    """The order of the training samples in two epochs.

    Attributes:
        order: ``changes``; ``same`` (the same samples at the same places); ``told`` (the same until something in
            the loader is told the number of the epoch); ``lost`` (the same because what changes it lives in a
            worker, and the workers are made anew); ``ends`` (the second epoch is empty); ``raises`` (it can't be
            read); ``unknown``.
        said: what was compared, what was raised, or why nothing is known; for ``told``, what has to be told.
        batches: how many batches an epoch has; ``None`` where it was not read to its end.
        samples: how many samples were compared.
        places: what the sampler draws in the first epoch, where it draws whole numbers.
        source: what the batches come from: a ``list``, a ``map``-style data set, a ``stream`` behind a
            ``DataLoader``, or something ``else``.
    """

    cost: ClassVar[Cost] = "data"
    order: Order
    said: str
    batches: int | None = None
    samples: int = 0
    places: list[int] | None = field(default=None, repr=False)
    source: Source = "else"

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        samples: Samples,
        fetches: Fetches | None,
        deadline: Deadline,
        *,
        max_draws: Annotated[
            int, Field(gt=0, description="samples whose order is compared at most")
        ] = 100_000,
        max_seconds: Annotated[float, Field(gt=0, description="seconds to read an epoch at most")] = 5.0,
    ) -> Epochs:
        """Draw, or where nothing draws read, two epochs without going back in between.

        Args:
            samples: what the scan found; it goes first, since both read the same loader.

        Raises:
            Unavailable: the loader can be read only once.
        """
        loader = target.train_loader
        if sandbox.one_way or hasattr(type(loader), "__next__"):
            source = (*sandbox.one_way, type(loader).__name__)[0]
            raise Unavailable(
                f"`train_loader` reads from a `{source}`, so there is no second epoch to look at; pass a loader that "
                "begins anew when it is iterated again"
            )
        if isinstance(loader, (list, tuple)):
            return Epochs("same", "a list of batches", len(loader), samples.rows.count, source="list")
        inner = inner_loader(loader)
        kind: Source = "else" if inner is None else "map" if is_map_style(inner) else "stream"
        limits = _Limits(max_draws, 2 * samples.rows.count, min(max_seconds, deadline.seconds_left))
        sandbox.rewind()
        with sandbox.probe():
            try:
                if inner is not None and kind == "map":
                    found = _drawn(loader, inner, fetches, limits)
                elif samples.complete:
                    found = _read(loader, inner, limits)
                else:
                    found = Epochs(
                        "unknown", f"an epoch has more than the {samples.rows.count:,} samples scanned"
                    )
                return replace(found, source=kind)
            except Exception as error:
                return Epochs("unknown", f"two epochs could not be read: {one_line(error)}")


@dataclass(frozen=True)
class _Limits:
    draws: int
    samples: int
    seconds: float


def _drawn(loader: Any, inner: DataLoader[Any], fetches: Fetches | None, limits: _Limits) -> Epochs:
    """Compare what the sampler draws in two epochs."""
    try:
        with _time_limit(_WAIT, "the sampler drew no second epoch"):
            first, complete = draw(inner, limits.draws)
            second, _ = draw(inner, limits.draws)
    except Broken as error:
        return Epochs("unknown", str(error))
    except Exception as error:
        return Epochs("raises", one_line(error))
    found = places(first)
    count = sum(len(item) if isinstance(item, list) else 1 for item in first)
    facts: dict[str, Any] = {"batches": len(first) if complete else None, "samples": count, "places": found}
    if not second:
        return Epochs("ends", "the sampler draws nothing in the second epoch", **facts)
    if first != second:
        return Epochs("changes", f"the order of {count:,} samples", **facts)
    if count < _FEWEST:
        return Epochs("unknown", f"{count} samples are too few to tell an order from another", **facts)
    if not complete and found != list(range(count)):
        return Epochs("unknown", f"an epoch has more than the {count:,} samples compared", **facts)
    for owner in with_set_epoch(loader, inner):
        owner.set_epoch(_LATE_EPOCH)
        if draw(inner, limits.draws)[0] != first:
            return Epochs("told", type(owner).__name__, **facts)
    if inner is not loader:
        return _confirmed(loader, limits, facts)
    if fetches is not None and not fetches.recognised:
        return Epochs("changes", "samples are made up anew in every fetch, as far as can be told", **facts)
    return Epochs("same", f"the order of {count:,} samples", **facts)


def _confirmed(loader: Any, limits: _Limits, facts: dict[str, Any]) -> Epochs:
    """Hold two beginnings against each other, since a wrapper may change the order of what it is given."""
    first, second = (_beginning(loader, _COMPARED, limits.seconds) for _ in range(2))
    if (same := _alike(first, second)) is None:
        return Epochs("unknown", "the content does not tell the samples apart", **facts)
    order: Order = "same" if same else "changes"
    return Epochs(order, f"the order of {facts['samples']:,} samples", **facts)


def _read(loader: Any, inner: DataLoader[Any] | None, limits: _Limits) -> Epochs:
    """Compare what comes in two epochs."""
    persistent = inner is not None and inner.persistent_workers
    if persistent and inner is not loader:
        return Epochs("unknown", "the workers behind a wrapper live on from epoch to epoch")
    reader = standing_alone(inner) if inner is not None and inner is loader else loader
    try:
        first = _beginning(reader, limits.samples, limits.seconds)
        if first.finished and not first.batches:
            return Epochs("ends", "reading gives nothing after the first pass")
        if not first.finished:
            return Epochs("unknown", f"an epoch was not read to its end within {limits.seconds:g} s")
        facts: dict[str, Any] = {"batches": first.batches, "samples": len(first.digests)}
        try:
            with _time_limit(_WAIT, "a second epoch gave no batch"):
                second = _beginning(reader, _COMPARED, limits.seconds)
        except Broken as error:
            return Epochs("raises", str(error), **facts)
        except Exception as error:
            return Epochs("raises", one_line(error), **facts)
        if not second.batches:
            return Epochs("ends", "reading gives nothing in the second epoch", **facts)
        if (same := _alike(first, second)) is None:
            return Epochs("unknown", "the content does not tell the samples apart", **facts)
        for owner in with_set_epoch(loader, inner) if same else ():
            owner.set_epoch(_LATE_EPOCH)
            if _alike(first, _beginning(reader, _COMPARED, limits.seconds)) is False:
                return Epochs("told", type(owner).__name__, **facts)
        said = f"the order of {len(first.digests):,} samples"
        if same and inner is loader and inner.num_workers and _changes_in_one_worker(inner, limits):
            return Epochs("lost", said, **facts)
        return Epochs("same" if same else "changes", said, **facts)
    finally:
        if reader is not loader:
            stop_workers(reader)


def _changes_in_one_worker(loader: DataLoader[Any], limits: _Limits) -> bool:
    """Whether the order changes where a worker lives on from epoch to epoch."""
    twin = standing_alone(loader)
    twin.__dict__.update(num_workers=1, persistent_workers=True, pin_memory=False)
    try:
        first = _beginning(twin, limits.samples, limits.seconds)
        return first.finished and _alike(first, _beginning(twin, _COMPARED, limits.seconds)) is False
    finally:
        stop_workers(twin)


@dataclass(frozen=True)
class _Beginning:
    """The first samples of an epoch."""

    digests: list[bytes]
    labels: list[bytes]
    batches: int
    finished: bool


def _beginning(loader: Iterable[Any], most: int, seconds: float) -> _Beginning:
    reader, end = RowReader("train", room=0), time.monotonic() + seconds
    batches = count = 0
    finished = True
    for batch in loader:
        if count >= most or (batches and time.monotonic() > end):
            finished = False
            break
        count += max(1, reader.add(batch))
        batches += 1
    rows = reader.read(finished)
    return _Beginning(rows.digests, rows.label_digests, batches, finished)


def _alike(first: _Beginning, second: _Beginning) -> bool | None:
    """Whether the same samples come at the same places; ``None`` where that can't be told.

    Labels speak for samples whose content is random.
    """
    if len(set(second.digests)) < _FEWEST:
        return None
    if first.digests[: len(second.digests)] == second.digests:
        return True
    return _tell_apart(second.labels) and first.labels[: len(second.labels)] == second.labels


def _tell_apart(labels: list[bytes]) -> bool:
    """Whether a sequence of labels is irregular enough to show an order: neither in blocks nor periodic."""
    count, classes = len(labels), len(set(labels))
    runs = sum(one != two for one, two in pairwise(labels))
    periodic = any(labels[period:] == labels[:-period] for period in range(1, count // 2 + 1))
    return count >= _ENOUGH_LABELS and runs > 2 * classes and not periodic
