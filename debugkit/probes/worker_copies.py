"""Samples of a stream that every worker gives anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch.utils.data import DataLoader

from debugkit.data.loaders import inner_loader, is_map_style, standing_alone, stop_workers
from debugkit.data.rows import RowReader, Rows
from debugkit.data.stream import _time_limit
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.probes.samples import Samples
from debugkit.sandbox import Sandbox
from debugkit.target import Target

_FEWEST = 4
_FEWEST_IN_TOTAL = 16


@dataclass(frozen=True)
class WorkerCopies:
    """How often the workers of a loader over an ``IterableDataset`` give the same sample.

    Attributes:
        workers: how many workers the loader has.
        copies: how many of them give each sample; 1 where they share the samples out.
        distinct: how many different samples were read.
        samples: how many samples were read.
    """

    cost: ClassVar[Cost] = "data"
    workers: int
    copies: int
    distinct: int
    samples: int

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        samples: Samples,
        deadline: Deadline,
        *,
        max_seconds: Annotated[float, Field(gt=0, description="seconds to read at most")] = 5.0,
    ) -> WorkerCopies:
        """Compare what the workers gave in the scan, and if need be what one of them gives alone.

        Raises:
            Unavailable: there is no ``DataLoader`` with several workers over an ``IterableDataset``.
        """
        loader = inner_loader(target.train_loader)
        if loader is None or is_map_style(loader) or loader.num_workers < 2:
            raise Unavailable(
                "`train_loader` is no `DataLoader` with several workers over an `IterableDataset`, so nothing can "
                "come from several workers"
            )
        rows, workers = samples.rows, loader.num_workers
        counts = Counter(rows.digests)
        found = WorkerCopies(workers, 1, len(counts), rows.count)
        if len(counts) < _FEWEST:
            return found
        multiple = rows.complete and all(count % workers == 0 for count in counts.values())
        if not _in_step(rows, workers) and (len(counts) < _FEWEST_IN_TOTAL or not multiple):
            return found
        if multiple and not _in_step(rows, workers):
            sandbox.rewind()
            with sandbox.probe():
                alone = _alone(loader, rows.count, min(max_seconds, deadline.seconds_left))
            if alone != {digest: count // workers for digest, count in counts.items()}:
                return found
        return WorkerCopies(workers, workers, len(counts), rows.count)


def _in_step(rows: Rows, workers: int) -> bool:
    """Whether the workers, which take turns batch by batch, give the same batch in every turn."""
    batches: list[Sequence[bytes]] = []
    start = 0
    for size in rows.batch_sizes:
        batches.append(rows.digests[start : start + size])
        start += size
    turns = [batches[turn : turn + workers] for turn in range(0, len(batches) - workers + 1, workers)]
    return bool(turns) and all(batch == turn[0] for turn in turns for batch in turn[1:])


def _alone(loader: DataLoader[Any], most: int, seconds: float) -> dict[bytes, int]:
    """How often each sample comes from a single worker; nothing where that takes too long."""
    twin, reader, count = standing_alone(loader), RowReader("train", room=0), 0
    twin.__dict__.update(num_workers=1, persistent_workers=False, pin_memory=False)
    try:
        with _time_limit(seconds, "one worker did not finish"):
            for batch in twin:
                count += reader.add(batch)
                if count > most:
                    return {}
    except Broken:
        return {}
    finally:
        stop_workers(twin)
    return dict(Counter(reader.read(complete=True).digests))
