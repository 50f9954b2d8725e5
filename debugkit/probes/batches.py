"""The first batches, in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from debugkit.data.batch import size
from debugkit.evidence import Cost
from debugkit.probes.stream import TrainStream


@dataclass(frozen=True, eq=False)
class Batches:
    """The first batches as the loader yields them (on the loader's device).

    Attributes:
        items: up to four batches, or as many as it takes to hold 16 samples.
    """

    cost: ClassVar[Cost] = "data"
    items: tuple[Any, ...]

    @staticmethod
    def collect(stream: TrainStream) -> Batches:
        """Read the first batches."""
        return Batches(tuple(stream.prefix()))

    @property
    def first(self) -> Any:
        """The first batch."""
        return self.items[0]

    @property
    def samples(self) -> int:
        """The number of samples in all the batches (a batch of unknown size counts once)."""
        return sum(size(batch) or 1 for batch in self.items)
