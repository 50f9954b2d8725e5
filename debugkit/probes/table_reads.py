"""Which tables the user's step reads by number, and which part of the batch the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.batch import size, sliceable, take
from debugkit.columns import columns_of
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.table_watch import Kind, Read, TableWatch
from debugkit.target import Target

_SEQUENCES = 4
_SAMPLES = 8
_LONG = 8
_MOST_PARTS = 128
_FEWEST_POSITIONS = 4
_FEWEST_DISTINCT = 4


@dataclass(frozen=True)
class Source:
    """Where in the batch the numbers of a reading stand.

    Attributes:
        path: the column.
        part: which of a sample's numbers; ``None`` for all of them.
        offset: what is added to them.
        is_label: whether the column is a label.
    """

    path: str
    part: int | None = None
    offset: int = 0
    is_label: bool = False

    @property
    def name(self) -> str:
        """Such as ``input_ids`` or ``[0][:, 3]``."""
        return self.path + ("" if self.part is None else f"[:, {self.part}]")


@dataclass(frozen=True)
class Positions:
    """Numbers that count along a sequence.

    Attributes:
        path: the column of the sequence.
        limit: the longest sequence for which the table has rows.
        counts_padding: whether places of padding are counted too.
    """

    path: str
    limit: int
    counts_padding: bool


@dataclass(frozen=True, eq=False)
class TableRead:
    """One table as the step read it.

    Attributes:
        table: its dotted name.
        rows: how many rows it has.
        kind: see :class:`debugkit.table_watch.Read`.
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
        columns = _columns(part)
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


@dataclass(frozen=True)
class _Column:
    path: str
    values: torch.Tensor
    is_label: bool


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
    long = any(c.values.ndim > 1 and c.values.shape[1] >= _LONG and not c.is_label for c in _columns(batch))
    most = _SEQUENCES if long else _SAMPLES
    return take(batch, range(min(most, count))) if count > most else batch


def _columns(batch: Any) -> list[_Column]:
    """The columns of whole numbers, those that are stored as floats included, inputs first."""
    found = columns_of(batch)
    columns = []
    for path, values in found.tensors.items():
        if not isinstance(values, torch.Tensor):
            if len({value.shape for value in values}) != 1:
                continue
            values = torch.stack([value.cpu() for value in values])
        if values.ndim <= 3 and values.dtype != torch.bool and values.numel():
            columns.append(_Column(path, values.detach().cpu(), path in found.labels))
    return sorted(columns, key=lambda column: (column.is_label, column.path != "input_ids"))


def _explained(read: Read, columns: list[_Column]) -> TableRead:
    labels_first = sorted(columns, key=lambda column: not column.is_label)
    source = None
    if read.kind != "first":
        source = _source(read.index, labels_first if read.kind == "classes" else columns)
    positions = _positions(read, columns) if read.kind != "classes" else None
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


def _bad_sample(read: Read, columns: list[_Column]) -> int | None:
    samples = len(columns[0].values) if columns else 0
    if read.fits or read.kind != "rows" or read.index.ndim == 0 or len(read.index) != samples:
        return None
    wrong = ((read.index < 0) | (read.index >= read.rows)).reshape(samples, -1).any(1)
    return int(wrong.nonzero()[0])


def _source(index: torch.Tensor, columns: list[_Column]) -> Source | None:
    """The column that holds these numbers, of several the first; ``None`` where it is not clear which."""
    distinct = _distinct(index)
    if distinct < 2:
        return None
    ranked = [(rank, source) for column in columns for rank, source in _matches(index, column)]
    if not ranked:
        return None
    labels = columns[0].is_label
    best = min((rank, source.is_label != labels) for rank, source in ranked)
    found = [source for rank, source in ranked if (rank, source.is_label != labels) == best]
    return found[0] if len(found) == 1 or distinct >= _LONG else None


def _distinct(index: torch.Tensor) -> int:
    return len(torch.unique(index))


def _matches(index: torch.Tensor, column: _Column) -> Iterator[tuple[int, Source]]:
    """How well a column explains an index, 0 being best, and how."""
    values, flat = column.values, index.flatten()
    if values.is_floating_point() and not bool((values == values.round()).all()):
        if values.ndim == 2:
            yield from ((0, Source(column.path, j, 0, column.is_label)) for j in _equal_parts(flat, values))
        return
    values = values.long()
    if index.numel() == values.numel():
        turned = values.ndim == 2 and index.shape == values.T.shape and torch.equal(index, values.T)
        if turned or torch.equal(flat, values.flatten()):
            yield 0, Source(column.path, is_label=column.is_label)
            return
        gap = flat - values.flatten()
        if int(gap.min()) == int(gap.max()) and _distinct(flat) >= _FEWEST_DISTINCT:
            yield 1, Source(column.path, offset=int(gap[0]), is_label=column.is_label)
            return
    if values.ndim == 2:
        yield from ((0, Source(column.path, j, 0, column.is_label)) for j in _equal_parts(flat, values))
        if index.numel() % len(values) == 0 and _is_shifted(index.reshape(len(values), -1), values):
            yield 2, Source(column.path, is_label=column.is_label)


def _is_shifted(index: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether an index holds the rows without their beginning or end, or moved by one place."""
    width, full = index.shape[1], values.shape[1]
    if full < _FEWEST_DISTINCT:
        return False
    if width < full:
        return torch.equal(index, values[:, :width]) or torch.equal(index, values[:, -width:])
    later, earlier = values[:, 1:], values[:, :-1]
    pairs = ((index[:, 1:], earlier), (index[:, :-1], later)) if width == full else ()
    return any(
        int((known := there >= 0).sum()) >= _FEWEST_DISTINCT and torch.equal(here[known], there[known])
        for here, there in pairs
    )


def _equal_parts(flat: torch.Tensor, values: torch.Tensor) -> Iterator[int]:
    if flat.numel() == len(values) and values.shape[1] <= _MOST_PARTS:
        for part in range(values.shape[1]):
            if torch.equal(flat.to(values.dtype), values[:, part]):
                yield part


def _positions(read: Read, columns: list[_Column]) -> Positions | None:
    """The sequence that an index counts along, if it does."""
    wide = [column for column in columns if column.values.ndim >= 2]
    if read.kind == "first":
        for column in wide:
            further = read.highest - column.values.shape[1]
            if column.values.shape[1] >= _FEWEST_POSITIONS and -1 <= further <= 2:
                return Positions(column.path, read.rows - further, True)
        return None
    length = read.index.shape[-1] if read.index.ndim else 0
    if read.index.ndim == 2 and read.index.shape[1] == 1:
        length = len(read.index)
    beside = [column for column in wide if -1 <= length - column.values.shape[1] <= 2]
    if not beside or length < _FEWEST_POSITIONS:
        return None
    rows = read.index.reshape(-1, length)
    steps = rows.diff(dim=1)
    counted = steps == 1
    fill = rows[:, -1:] if bool((steps[:, -1] == 0).any()) else rows[:, :1]
    still = (rows[:, 1:] == fill) | (rows[:, :-1] == fill)
    if not bool((counted | still).all()) or int(counted.sum(1).max()) < _FEWEST_POSITIONS - 1:
        return None
    longest = int(counted.sum(1).argmax())
    first = int(counted[longest].nonzero()[0])
    start = int(rows[longest, first])
    if not bool(counted.all()) and start == int(fill[longest]) and first + 1 < length:
        start += 1  # the step from the number of the padding to the first position
    further = length - beside[0].values.shape[1]
    return Positions(beside[0].path, read.rows - start - further, bool(counted.all()))
