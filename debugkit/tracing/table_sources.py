"""Where the numbers that a table is read by come from: a part of the batch, or a count along a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from debugkit.data.columns import columns_of
from debugkit.tracing.table_watch import Read

LONG = 8
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


@dataclass(frozen=True)
class NumberColumn:
    """One column of a batch that may hold numbers of rows.

    Attributes:
        path: its place in the batch.
        values: ``[samples, ...]`` on the CPU.
        is_label: whether it is a label.
    """

    path: str
    values: torch.Tensor
    is_label: bool


def number_columns(batch: Any) -> list[NumberColumn]:
    """The columns of whole numbers, those that are stored as floats included, inputs first."""
    found = columns_of(batch)
    columns = []
    for path, values in found.tensors.items():
        if not isinstance(values, torch.Tensor):
            if len({value.shape for value in values}) != 1:
                continue
            values = torch.stack([value.cpu() for value in values])
        if values.ndim <= 3 and values.dtype != torch.bool and values.numel():
            columns.append(NumberColumn(path, values.detach().cpu(), path in found.labels))
    return sorted(columns, key=lambda column: (column.is_label, column.path != "input_ids"))


def source_of(index: torch.Tensor, columns: list[NumberColumn]) -> Source | None:
    """The column that holds these numbers.

    Args:
        index: whole numbers that a table was read by.
        columns: of the batch, in order of preference.

    Returns:
        ``None`` where no column holds them, or several do and the numbers are too few to tell.
    """
    distinct = _distinct(index)
    if distinct < 2:
        return None
    ranked = [(rank, source) for column in columns for rank, source in _matches(index, column)]
    if not ranked:
        return None
    labels = columns[0].is_label
    best = min((rank, source.is_label != labels) for rank, source in ranked)
    found = [source for rank, source in ranked if (rank, source.is_label != labels) == best]
    return found[0] if len(found) == 1 or distinct >= LONG else None


def _distinct(index: torch.Tensor) -> int:
    return len(torch.unique(index))


def _matches(index: torch.Tensor, column: NumberColumn) -> Iterator[tuple[int, Source]]:
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


def positions_of(read: Read, columns: list[NumberColumn]) -> Positions | None:
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
    begun = (counted[:, 1:] & ~counted[:, :-1]).sum(1) + counted[:, 0].int()
    if int(begun.max()) > 1:  # several texts in one row, each counted from its own start
        return None
    longest = int(counted.sum(1).argmax())
    first = int(counted[longest].nonzero()[0])
    start = int(rows[longest, first])
    if not bool(counted.all()) and start == int(fill[longest]) and first + 1 < length:
        start += 1  # the step from the number of the padding to the first position
    further = length - beside[0].values.shape[1]
    return Positions(beside[0].path, read.rows - start - further, bool(counted.all()))
