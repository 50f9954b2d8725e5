"""A loader as a stream: read once, from the start, with the prefix that checks share kept."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from debugkit.data.batch import size
from debugkit.errors import Broken, one_line

KEPT_BATCHES = 4
KEPT_SAMPLES = 16


class Stream:
    """The batches of a loader in its own order.

    The loader is iterated once. The first batches are kept, later ones are passed through, so that a scan
    of thousands of samples holds no more than a few batches in memory.

    Args:
        loader: an iterable of batches.
        name: how messages call it, such as ``train_loader``.
        timeout: seconds to wait for one batch.

    Attributes:
        indices: per batch that was drawn, the places of its samples in the data set; ``None`` where the loader
            does not tell them. Workers draw a few batches ahead of what was read.
    """

    def __init__(self, loader: Iterable[Any], name: str, timeout: float) -> None:
        loader, self.indices = _with_recorded_indices(loader)
        self.name = name
        self._loaders = [*_loaders(loader)]
        self._timeout = timeout
        self._prefix: list[Any] = []
        self._read = 0
        self._kept = 0
        self._failure: Broken | None = None
        self._finished = False
        self._iterator = self._begin(loader)

    def prefix(self, count: int = KEPT_SAMPLES) -> list[Any]:
        """The first batches, at most ``count`` of :data:`KEPT_BATCHES`, or more until they hold 16 samples.

        Raises:
            Broken: not even one batch could be read.
        """
        while len(self._prefix) < count and self._keeps() and self._read == len(self._prefix):
            if not self._advance():
                break
        if not self._prefix:
            raise self._failure or Broken(f"`{self.name}` yields no batch: it is empty")
        return self._prefix[:count]

    def batches(self, seconds: float) -> Iterator[Any]:
        """All batches from the start, until ``seconds`` have passed. Can be used once.

        Raises:
            Broken: the loader raised, or gave nothing at all.
        """
        self.prefix()
        end = time.monotonic() + seconds
        yield from self._prefix
        while time.monotonic() < end and (batch := self._advance()) is not None:
            yield batch[0]
        if self._failure is not None:
            raise self._failure

    @property
    def finished(self) -> bool:
        """Whether the loader came to its end."""
        return self._finished

    def close(self) -> None:
        """Let go of the loader's iterator and its workers."""
        self._loaders, self._iterator = [], iter(())

    def _begin(self, loader: Iterable[Any]) -> Iterator[Any]:
        self._single = isinstance(loader, Dataset)
        try:
            with (
                _time_limit(self._timeout, f"`{self.name}` could not be opened"),
                _own_workers(self._loaders),
            ):
                return iter(loader)
        except Broken:
            raise
        except (Exception, SystemExit) as error:
            raise Broken(f"`{self.name}` can't be iterated: {one_line(error)}") from error

    def _advance(self) -> tuple[Any] | None:
        if self._failure is not None or self._finished:
            return None
        try:
            late = f"`{self.name}` gave no batch {self._read}"
            with _time_limit(self._timeout, late), _own_workers(self._loaders):
                batch = next(self._iterator)
        except StopIteration:
            self._finished = True
            return None
        except Broken as error:
            self._failure = error
            return None
        except (Exception, SystemExit, GeneratorExit) as error:
            self._failure = Broken(
                f"`{self.name}` raised at batch {self._read} (counting from 0): {one_line(error)}"
            )
            self._failure.__cause__ = error
            return None
        if size(batch) == 0:
            self._failure = Broken(f"`{self.name}` yields an empty batch (batch {self._read})")
            return None
        if self._single and _is_one_sample(batch):
            self._failure = Broken(
                f"`{self.name}` is a data set that yields single samples; wrap it in a DataLoader"
            )
            return None
        self._read += 1
        if self._keeps():
            self._prefix.append(batch)
            self._kept += size(batch) or KEPT_SAMPLES
        return (batch,)

    def _keeps(self) -> bool:
        return len(self._prefix) < KEPT_BATCHES or self._kept < KEPT_SAMPLES


def _is_one_sample(batch: Any) -> bool:
    """Whether something in it has no batch dimension: a number, or a tensor without dimensions."""
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return isinstance(parts, Iterable) and any(
        isinstance(part, (int, float)) or (isinstance(part, torch.Tensor) and not part.ndim) for part in parts
    )


class _Recorded:
    """A batch sampler that notes what it draws.

    Args:
        sampler: the loader's own.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.drawn: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for indices in self._sampler:
            self.drawn.append(indices)
            yield indices

    def __len__(self) -> int:
        return len(self._sampler)


def _with_recorded_indices(loader: Any) -> tuple[Any, list[Any] | None]:
    """The loader, or for a plain one over a map-style data set a copy of it that tells which samples it draws.

    So for the one that accelerate, and with it `transformers.Trainer`, wraps around a plain one.
    """
    if _is_accelerate_shard(loader):
        inner, drawn = _with_recorded_indices(loader.base_dataloader)
        if drawn is None:
            return loader, None
        twin = object.__new__(type(loader))
        twin.__dict__.update(loader.__dict__, base_dataloader=inner)
        return twin, drawn
    if type(loader) is not DataLoader or loader.batch_sampler is None:
        return loader, None
    if isinstance(loader.dataset, IterableDataset):
        return loader, None
    twin = copy.copy(loader)
    recorded = _Recorded(loader.batch_sampler)
    twin.__dict__["batch_sampler"] = recorded
    twin.__dict__["_iterator"] = None
    return twin, recorded.drawn


def _is_accelerate_shard(loader: Any) -> bool:
    """Whether it yields every batch of the loader inside it, in the order in which they come."""
    kind = type(loader)
    named = (kind.__module__, kind.__qualname__) == ("accelerate.data_loader", "DataLoaderShard")
    return named and not loader.skip_batches


@contextmanager
def _own_workers(loaders: Iterable[Any]) -> Iterator[None]:
    """Read loaders with persistent workers without disturbing, or becoming, the iterators that they keep.

    A wrapper may open the loader inside it as late as at the first batch.
    """
    kept = [(loader, loader._iterator) for loader in loaders]
    for loader, _ in kept:
        loader._iterator = None
    try:
        yield
    finally:
        for loader, iterator in kept:
            loader._iterator = iterator


def _loaders(loader: Any, depth: int = 3) -> Iterator[Any]:
    """The loaders that keep an iterator of their own, in wrappers too."""
    attributes = getattr(loader, "__dict__", {})
    if isinstance(loader, DataLoader) and "_iterator" in attributes:
        yield loader
    elif depth:
        for value in attributes.values():
            yield from _loaders(value, depth - 1)


class _Expired(BaseException):
    """Time is up; no ``Exception``, so that a data set that skips bad samples does not swallow it."""


@contextmanager
def _time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise :class:`Broken` when the block takes too long (main thread of a Unix process only)."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Expired:
        raise Broken(f"{what} within {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
