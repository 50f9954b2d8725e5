"""Which tables the user's step reads by number, and which part of the batch the numbers come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import size, sliceable, take
from debugkit.data.columns import columns_of
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.table_sources import (
    LONG,
    NumberColumn,
    Positions,
    Source,
    number_columns,
    positions_of,
    source_of,
)
from debugkit.tracing.table_watch import Kind, Read, TableWatch

_SEQUENCES = 4
_SAMPLES = 8


@dataclass(frozen=True, eq=False)
class TableRead:
    """One table as the step read it.

    Attributes:
        table: its dotted name.
        rows: how many rows it has.
        kind: see :class:`debugkit.tracing.table_watch.Read`.
        lowest: the smallest number in these samples (for a slice, how many rows it asks for).
        highest: the largest one.
        fits: whether the table has all these rows.
        bad_sample: the number in its batch of the first sample that asks for a row that is not there.
        location: the source line.
        source: where the numbers come from; ``None`` where the step makes them, or it is not clear.
        positions: set where they count along a sequence.
    """

    table: str
    rows: int
    kind: Kind
    lowest: int
    highest: int
    fits: bool
    bad_sample: int | None
    location: str | None
    source: Source | None = None
    positions: Positions | None = None


@dataclass(frozen=True, eq=False)
class TableReads:
    """The tables that the step reads on some samples of the first batch.

    Attributes:
        reads: the readings, each table and source once.
        samples: how many samples were run.
        failure: what the step raised, if it did.
    """

    cost: ClassVar[Cost] = "forward"
    reads: tuple[TableRead, ...] = field(repr=False)
    samples: int
    failure: str | None = None

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep | None) -> TableReads:
        """Run the step on four sequences or eight samples; on the whole batch where it is known to raise.

        Raises:
            Unavailable: there are no whole numbers in the batch and no embeddings in the model.
        """
        if not _has_numbers(batches.first) and not _has_embeddings(target.model):
            raise Unavailable("the batches hold no whole numbers that a model could look up")
        part = batches.first if step is None else _part(batches.first)
        failure = None
        with sandbox.probe(), TableWatch(target.model) as watch:
            if not sandbox.training[""]:
                target.model.train()
            try:
                run_step(target, part)
            except Broken as error:
                failure = str(error)
        columns = number_columns(part)
        found: dict[tuple[Any, ...], TableRead] = {}
        for read in watch.reads:
            one = _explained(read, columns)
            key = (one.table, one.kind, one.source, one.positions)
            if key not in found or (found[key].fits and not one.fits):
                found[key] = one
        return TableReads(tuple(found.values()), size(part) or 1, failure)

    @property
    def positions(self) -> list[TableRead]:
        """The readings that count along a sequence."""
        return [read for read in self.reads if read.positions is not None]


def _has_numbers(batch: Any) -> bool:
    columns = columns_of(batch)
    return any(
        isinstance(values, torch.Tensor) and _is_whole(values) and values.ndim <= 3
        for path, values in columns.tensors.items()
        if path not in columns.labels
    )


def _is_whole(values: torch.Tensor) -> bool:
    return not values.is_floating_point() and values.dtype not in (torch.bool, torch.uint8)


def _has_embeddings(model: torch.nn.Module) -> bool:
    return any(isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)) for module in model.modules())


def _part(batch: Any) -> Any:
    count = size(batch)
    if not count or not sliceable(batch):
        return batch
    long = any(
        c.values.ndim > 1 and c.values.shape[1] >= LONG and not c.is_label for c in number_columns(batch)
    )
    most = _SEQUENCES if long else _SAMPLES
    return take(batch, range(min(most, count))) if count > most else batch


def _explained(read: Read, columns: list[NumberColumn]) -> TableRead:
    labels_first = sorted(columns, key=lambda column: not column.is_label)
    source = None
    if read.kind != "first":
        source = source_of(read.index, labels_first if read.kind == "classes" else columns)
    positions = positions_of(read, columns) if read.kind != "classes" else None
    return TableRead(
        table=read.table,
        rows=read.rows,
        kind=read.kind,
        lowest=read.lowest,
        highest=read.highest,
        fits=read.fits,
        bad_sample=_bad_sample(read, columns),
        location=read.location,
        source=source,
        positions=positions,
    )


def _bad_sample(read: Read, columns: list[NumberColumn]) -> int | None:
    samples = len(columns[0].values) if columns else 0
    if read.fits or read.kind != "rows" or read.index.ndim == 0 or len(read.index) != samples:
        return None
    wrong = ((read.index < 0) | (read.index >= read.rows)).reshape(samples, -1).any(1)
    return int(wrong.nonzero()[0])
