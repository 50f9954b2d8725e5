"""What the training samples hold, with a wider look than the scan where single samples can be fetched."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch.utils.data import DataLoader

from debugkit.data.loaders import draw, fetching, inner_loader, is_map_style
from debugkit.data.rows import RowReader, Rows
from debugkit.data.stream import _time_limit
from debugkit.errors import Broken
from debugkit.evidence import Cost
from debugkit.probes.samples import Samples
from debugkit.sandbox import Sandbox
from debugkit.target import Target

_WORTH_IT = 1.5
_TRIED = 8


@dataclass(frozen=True, eq=False)
class TrainContents:
    """The training samples to compare with each other and with other splits.

    Attributes:
        rows: the scan's samples, or more of them.
        total: how many samples an epoch has; ``None`` where that is not known.
    """

    cost: ClassVar[Cost] = "data"
    rows: Rows
    total: int | None

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        samples: Samples,
        *,
        max_samples: Annotated[int, Field(gt=0, description="samples to compare at most")] = 16_384,
        max_seconds: Annotated[
            float, Field(ge=0, description="seconds to fetch at most, after the scan")
        ] = 3.0,
    ) -> TrainContents:
        """Take the scan's rows; of a map-style data set that it did not see to the end, fetch more."""
        rows, loader = samples.rows, inner_loader(target.train_loader)
        if rows.complete or loader is None or not is_map_style(loader) or loader.batch_sampler is None:
            return TrainContents(rows, rows.count if rows.complete else None)
        with sandbox.probe():
            wider = _fetched(loader, rows, max_samples, max_seconds)
        return TrainContents(wider or rows, _length(loader))

    @property
    def scanned(self) -> str:
        """How many samples were compared, in words."""
        if self.rows.complete or self.total is None:
            return f"{self.rows.count:,} training samples"
        return f"{self.rows.count:,} of {self.total:,} training samples"


def _fetched(loader: DataLoader[Any], rows: Rows, most: int, seconds: float) -> Rows | None:
    """Samples in the order that the loader would draw them, without its workers, if they come fast enough."""
    reader = RowReader("train")
    try:
        with _time_limit(2 * seconds + 1, "samples"):
            drawn, ended = draw(loader, most)
            end, read, fastest = time.monotonic() + seconds, 0, float("inf")
            begun = time.monotonic()
            for batch in fetching(loader, drawn, workers=0):
                reader.add(batch)
                read, now = read + 1, time.monotonic()
                fastest, begun = min(fastest, now - begun), now
                if now > end or (read == _TRIED and seconds / fastest < _WORTH_IT * len(rows.batch_sizes)):
                    break
    except (Broken, Exception):  # what can't be fetched in this way is left to the scan
        return None
    found = reader.read(ended and read == len(drawn), drawn)
    return found if found.count > rows.count and found.content == rows.content else None


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader.sampler) if loader.batch_size is not None else len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
