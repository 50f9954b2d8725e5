"""The training samples: light facts from one bounded pass over the loader."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from debugkit.data.batch import size
from debugkit.data.labels import IGNORED, LabelReader, Labels, are_named, countable, joined, tensors_by_path
from debugkit.data.rows import RowReader, Rows
from debugkit.data.stream import Stream
from debugkit.evidence import Cost
from debugkit.probes.stream import TrainStream
from debugkit.target import Target

_SPREAD = 256

Origin = Literal["given", "named", "pair", "last"]


@dataclass(frozen=True, eq=False)
class Samples:
    """What was seen of the training data, sample by sample.

    Attributes:
        scanned: how many samples were read, in loader order.
        complete: whether the loader came to its end.
        labels: the labels of the scanned samples.
        rows: the scanned samples, key by key.
        spread: the labels of samples drawn from the whole data set, read where the loader goes
            through it in storage order and was not read to its end: its beginning need not be like the rest.
        origin: how it is known what the labels are. ``given``: they go to ``loss_fn``, or to the model under
            their name. Otherwise the step may do anything with a batch: ``named`` labels have a usual name,
            those of a ``pair`` are its second part, and the ``last`` part of anything else is a guess.
        candidates: unless the labels are given: the labels that each tensor of whole numbers would be,
            by its place in the batch.
    """

    cost: ClassVar[Cost] = "data"
    scanned: int
    complete: bool
    labels: Labels
    rows: Rows = field(default_factory=lambda: Rows("train"))
    spread: Labels | None = None
    origin: Origin = "given"
    candidates: Mapping[str, Labels] = field(default_factory=dict)

    @staticmethod
    def collect(
        target: Target,
        stream: TrainStream,
        *,
        max_samples: Annotated[int, Field(gt=0, description="samples to scan at most")] = 2048,
        max_seconds: Annotated[float, Field(gt=0, description="seconds to scan at most")] = 10.0,
    ) -> Samples:
        """Scan the loader from its start.

        Raises:
            Broken: the loader raised, or is empty.
        """
        ignored = ignored_labels(target)
        end = time.monotonic() + max_seconds
        origin = _origin(target, stream.prefix(1)[0])
        reader, rows = _Readers(ignored, origin), RowReader("train")
        complete, scanned = scan(
            stream, target.train_loader, [reader.add, rows.add], max_samples, max_seconds
        )
        spread, candidates = None, reader.candidates()
        if not complete:
            further = _Readers(ignored, origin)
            for batch in _spread_batches(target.train_loader, end):
                further.add(batch)
                spread = further.labels()
            candidates |= further.candidates()
        table = rows.read(complete, stream.indices)
        return Samples(scanned, complete, reader.labels(), table, spread, origin, candidates)

    @property
    def representative(self) -> Labels:
        """The labels to judge the data set by."""
        return self.labels if self.spread is None else self.spread


class _Readers:
    """One reader for the labels, and one for each other tensor that could be them."""

    def __init__(self, ignored: frozenset[int], origin: Origin) -> None:
        self._ignored = ignored
        self._origin = origin
        self._reader = LabelReader(ignored)
        self._others: dict[str, LabelReader] = {}
        self._begun = False

    def add(self, batch: Any) -> None:
        self._reader.add(batch)
        if self._origin == "given":
            return
        found = tensors_by_path(batch)
        if not self._begun:
            self._others = {path: LabelReader(self._ignored) for path in found if countable(found[path])}
            self._begun = True
        for path in self._others.keys() & found.keys():
            rest = {other: each[0] for other, each in found.items() if other != path and len(each) == 1}
            self._others[path].add_labels(joined(found[path]), rest, _ids(rest))

    def labels(self) -> Labels:
        return self._reader.read()

    def candidates(self) -> dict[str, Labels]:
        return {path: reader.read() for path, reader in self._others.items()}


def _ids(rest: Mapping[str, Any]) -> Any:
    found = [t for t in rest.values() if t.ndim == 2 and not t.is_floating_point() and not t.is_complex()]
    return rest.get("batch.input_ids", found[0] if found else None)


def _origin(target: Target, batch: Any) -> Origin:
    if target.training_step is None and (target.loss_fn is not None or are_named(batch)):
        return "given"
    if are_named(batch):
        return "named"
    return "pair" if isinstance(batch, (tuple, list)) and len(batch) == 2 else "last"


def scan(
    stream: Stream, loader: Any, readers: Sequence[Callable[[Any], object]], samples: int, seconds: float
) -> tuple[bool, int]:
    """Show every batch to the readers, up to a number of samples and seconds.

    Returns:
        Whether the loader came to its end, and the number of samples.

    Raises:
        Broken: the loader raised, or is empty.
    """
    scanned = batches = 0
    for batch in stream.batches(seconds):
        for read in readers:
            read(batch)
        scanned += size(batch) or 1
        batches += 1
        if scanned >= samples:
            break
    return stream.finished or batches == _length(loader), scanned


def ignored_labels(target: Target) -> frozenset[int]:
    """The label values that do not count in the loss."""
    index = getattr(target.loss_fn, "ignore_index", None)
    return frozenset({IGNORED, index}) if isinstance(index, int) else frozenset({IGNORED})


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def _spread_batches(loader: Any, end: float) -> Iterator[Any]:
    """Samples from all over the data set behind a loader that is not shuffled, until the time ``end``."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, SequentialSampler):
        return
    dataset, count = loader.dataset, _length(loader.dataset)
    if isinstance(dataset, IterableDataset) or not count:
        return
    step = loader.batch_size or 1
    places = sorted(random.Random(0).sample(range(count), min(_SPREAD, count)))
    for start in range(0, len(places), step):
        if time.monotonic() > end:
            return
        try:
            yield loader.collate_fn([dataset[place] for place in places[start : start + step]])
        except Exception:  # the loader may fetch in another way; what it can't give is left out
            return
