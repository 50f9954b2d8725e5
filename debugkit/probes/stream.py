"""The training data as a stream: read once, from the start, with the prefix that checks share kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset

from debugkit.batch import size
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.sandbox import Sandbox
from debugkit.target import Target

KEPT_BATCHES = 4
KEPT_SAMPLES = 16


class TrainStream:
    """The batches of ``train_loader`` in loader order.

    The loader is iterated once. The first batches are kept, later ones are passed through, so that a scan
    of thousands of samples holds no more than a few batches in memory.
    """

    cost: ClassVar[Cost] = "data"

    def __init__(self, loader: Iterable[Any], timeout: float) -> None:
        self._loaders = [*_loaders(loader)]
        self._timeout = timeout
        self._prefix: list[Any] = []
        self._read = 0
        self._kept = 0
        self._failure: Broken | None = None
        self._finished = False
        self._iterator = self._begin(loader)

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        *,
        timeout: Annotated[float, Field(gt=0, description="seconds to wait for one batch")] = 120.0,
    ) -> TrainStream:
        """Open the loader.

        Raises:
            Unavailable: the target has no ``train_loader``.
            Broken: the loader can't be iterated.
        """
        if target.train_loader is None:
            raise Unavailable("the target has no data; pass `Target(model, train_loader)`")
        if sandbox.one_way:
            sandbox.notices.append(
                f"`train_loader` reads from a `{sandbox.one_way[0]}`, which can't be rewound: what was read is gone "
                "from it; make a fresh loader to train on"
            )
        return TrainStream(target.train_loader, timeout)

    def prefix(self, count: int = KEPT_SAMPLES) -> list[Any]:
        """The first batches, at most ``count`` of :data:`KEPT_BATCHES`, or more until they hold 16 samples.

        Raises:
            Broken: not even one batch could be read.
        """
        while len(self._prefix) < count and self._keeps() and self._read == len(self._prefix):
            if not self._advance():
                break
        if not self._prefix:
            raise self._failure or Broken("`train_loader` yields no batch: it is empty")
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
                _time_limit(self._timeout, "`train_loader` could not be opened"),
                _own_workers(self._loaders),
            ):
                return iter(loader)
        except Broken:
            raise
        except (Exception, SystemExit) as error:
            raise Broken(f"`train_loader` can't be iterated: {one_line(error)}") from error

    def _advance(self) -> tuple[Any] | None:
        if self._failure is not None or self._finished:
            return None
        try:
            late = f"`train_loader` gave no batch {self._read}"
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
                f"`train_loader` raised at batch {self._read} (counting from 0): {one_line(error)}"
            )
            self._failure.__cause__ = error
            return None
        if size(batch) == 0:
            self._failure = Broken(f"`train_loader` yields an empty batch (batch {self._read})")
            return None
        if self._single and _is_one_sample(batch):
            self._failure = Broken(
                "`train_loader` is a data set that yields single samples; wrap it in a DataLoader"
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
