"""Following the data: which loaders are read, over which data, and what is done with their batches."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from debugkit.probes.loop_record import DataLog, DataPass, Evaluation, Mode
from debugkit.watch.places import line_at_work, shown

_LATEST_PASSES = 2_000

Cut = tuple[Hashable | None, np.ndarray[Any, Any]]


@dataclass
class Pass:
    """One pass over a loader; see :class:`debugkit.probes.loop_record.DataPass`."""

    data: int
    after_step: int
    batches: int = 0
    backwards: int = 0
    steps: int = 0
    finished: bool = False
    graphs: int = 0
    model_calls: Counter[tuple[Mode, bool]] = field(default_factory=Counter)
    losses: list[torch.Tensor] = field(default_factory=list)
    mean: float | None = None

    seen: int = 0
    model: int = 0

    def read_losses(self, *, last: bool) -> None:
        """Take the mean of the losses that were seen; after the last time they are dropped."""
        if not self.losses:
            return
        if not self.backwards:
            values = torch.stack([loss.reshape(()).float().cpu() for loss in self.losses])
            self.mean = float(values.mean())
        self.seen = len(self.losses)
        if last:
            self.losses = []


@dataclass
class _Data:
    name: str
    location: str | None
    read: bool = False
    cut: Cut = (None, np.empty(0, dtype=np.int64))


class DataTrack:
    """Loaders, the data behind them, and the passes over them, oldest first."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.current: Pass | None = None
        self.trained: set[int] = set()
        self._of_iterator: weakref.WeakKeyDictionary[Any, Pass] = weakref.WeakKeyDictionary()
        self._loaders: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
        self._data: list[_Data] = []
        self._common: dict[tuple[int, int], int] = {}
        self._index: dict[Hashable, int] = {}
        self._alive: list[object] = []

    def loader_made(self, loader: Any) -> None:
        """Know the data of a loader that may never be read."""
        self._number(loader)

    def pass_begins(self, loader: Any, iterator: Any, step: int) -> None:
        """A loader is iterated."""
        begun = Pass(self._number(loader), step)
        self._of_iterator[iterator] = begun
        self._loaders[iterator] = weakref.ref(loader)

    def loader_of(self, iterator: Any) -> Any:
        """The loader that an iterator reads; ``None`` if it is gone."""
        ref = self._loaders.get(iterator)
        return ref() if ref is not None else None

    def batch_read(self, iterator: Any) -> Pass | None:
        """The pass that a batch belongs to, now the current one."""
        read = self._of_iterator.get(iterator)
        if read is None:
            return None
        if not read.batches:
            self._data[read.data].read = True
            if len(self.passes) < _LATEST_PASSES:
                self.passes.append(read)
        read.batches += 1
        self.current = read
        return read

    def pass_ends(self, iterator: Any) -> None:
        """A loader is exhausted. Its last batch may still be at work: some wrappers read one ahead."""
        if (ended := self._of_iterator.get(iterator)) is not None:
            ended.finished = True

    def backward(self) -> None:
        """A gradient was computed."""
        if self.current is not None:
            self.current.backwards += 1
            self.trained.add(self.current.data)

    def step(self) -> None:
        """An optimizer has stepped."""
        if self.current is not None:
            self.current.steps += 1

    def begins_anew(self, before: Pass | None, now: Pass) -> bool:
        """Whether a pass follows one over the same data, the only data that is trained on."""
        return before is not None and before.data == now.data and self.trained == {now.data}

    @property
    def evaluates(self) -> bool:
        """Whether the latest batch comes from data that was not trained on."""
        return self.current is not None and self.current.data not in self.trained

    def logs(self) -> tuple[tuple[DataPass, ...], tuple[DataLog, ...], tuple[Evaluation, ...]]:
        """Passes, data and evaluations."""
        passes: list[DataPass] = []
        evaluations = []
        for read in self.passes:
            read.read_losses(last=read is not self.current)
            passes.append(
                DataPass(
                    data=read.data,
                    batches=read.batches,
                    backwards=read.backwards,
                    steps=read.steps,
                    model_calls=tuple(read.model_calls.items()),
                    finished=read.finished,
                    after_step=read.after_step,
                    graphs=read.graphs,
                )
            )
            if read.mean is not None and read.data not in self.trained:
                evaluations.append(
                    Evaluation(read.after_step, read.mean, read.seen, data=read.data, model=read.model)
                )
        passes = self._overlaps(passes)
        data = tuple(
            DataLog(index, data.name, data.location, data.read) for index, data in enumerate(self._data)
        )
        return tuple(passes), data, tuple(evaluations)

    def _overlaps(self, passes: list[DataPass]) -> list[DataPass]:
        """Passes without a backward, with what they share with the pass of training before them."""
        training: DataPass | None = None
        found = []
        for read in passes:
            if read.backwards:
                training = read
            elif training is not None and training.data != read.data:
                read = replace(read, shared=self._shared(training.data, read.data))
            found.append(read)
        return found

    def _shared(self, one: int, other: int) -> int:
        pair = min(one, other), max(one, other)
        if pair not in self._common:
            (base, rows), (other_base, other_rows) = (self._data[index].cut for index in pair)
            same = base is not None and base == other_base
            self._common[pair] = len(np.intersect1d(rows, other_rows)) if same else 0
        return self._common[pair]

    def _number(self, loader: Any) -> int:
        dataset = getattr(loader, "dataset", None)
        key = self._key(dataset)
        if key not in self._index:
            self._index[key] = len(self._data)
            self._data.append(_Data(_name(dataset), shown(line_at_work()), cut=self._cut(dataset)))
        return self._index[key]

    def _cut(self, dataset: Any) -> Cut:
        """The data set that a subset is cut from, and its rows."""
        if not isinstance(dataset, Subset):
            return None, np.empty(0, dtype=np.int64)
        return self._key(dataset.dataset), np.asarray([int(index) for index in dataset.indices])

    def _key(self, dataset: Any) -> Hashable:
        """The same for data sets over the same samples."""
        if isinstance(dataset, TensorDataset) and dataset.tensors:
            first = dataset.tensors[0]
            self._alive.append(first)
            return ("tensors", first.data_ptr(), len(first))
        if isinstance(dataset, Subset):
            return ("subset", self._key(dataset.dataset), hash(tuple(map(int, dataset.indices))))
        self._alive.append(dataset)
        return id(dataset)


def _name(dataset: Any) -> str:
    try:
        return f"{type(dataset).__name__} of {len(dataset):,}"
    except TypeError:
        return type(dataset).__name__
