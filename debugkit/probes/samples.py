"""The training samples: light facts from one bounded pass over the loader."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from debugkit.batch import size
from debugkit.evidence import Cost
from debugkit.labels import IGNORED, LabelReader, Labels
from debugkit.probes.stream import TrainStream
from debugkit.target import Target

_SPREAD = 256


@dataclass(frozen=True, eq=False)
class Samples:
    """What was seen of the training data, sample by sample.

    Attributes:
        scanned: how many samples were read, in loader order.
        complete: whether the loader came to its end.
        labels: the labels of the scanned samples.
        spread: the labels of samples drawn from the whole data set, read where the loader goes
            through it in storage order and was not read to its end: its beginning need not be like the rest.
    """

    cost: ClassVar[Cost] = "data"
    scanned: int
    complete: bool
    labels: Labels
    spread: Labels | None = None

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
        ignored = _ignored(target)
        end = time.monotonic() + max_seconds
        reader = LabelReader(ignored)
        scanned = batches = 0
        for batch in stream.batches(max_seconds):
            reader.add(batch)
            scanned += size(batch) or 1
            batches += 1
            if scanned >= max_samples:
                break
        complete = stream.finished or batches == _length(target.train_loader)
        spread = None
        if not complete:
            further = LabelReader(ignored)
            for batch in _spread_batches(target.train_loader, end):
                further.add(batch)
                spread = further.read()
        return Samples(scanned, complete, reader.read(), spread)

    @property
    def representative(self) -> Labels:
        """The labels to judge the data set by."""
        return self.labels if self.spread is None else self.spread


def _ignored(target: Target) -> frozenset[int]:
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
