"""Ids of the scanned samples against the rows of the table that takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debugkit import Finding, fail
from debugkit.data.labels import IGNORED
from debugkit.data.rows import Column, Rows
from debugkit.probes.table_reads import TableRead
from debugkit.tracing.table_sources import Source


@dataclass(frozen=True)
class IdRange:
    """The ids that a table has to have rows for.

    Attributes:
        read: the table and where its ids come from.
        lowest: the smallest id in all samples.
        highest: the largest id.
        samples: how many samples were looked at.
        outside: per split: the samples that hold an id without a row, and the first such id.
    """

    read: TableRead
    lowest: int
    highest: int
    samples: int
    outside: tuple[tuple[Rows, Sequence[int], int], ...]

    @property
    def fits(self) -> bool:
        """Whether there is a row for every id."""
        return not self.outside


def id_range(read: TableRead, splits: Sequence[Rows]) -> IdRange | None:
    """The ids of all scanned samples that a table takes; ``None`` where none can be followed."""
    source = read.source
    found = [(rows, rows.columns[source.path]) for rows in splits if source and source.path in rows.columns]
    if source is None or not found:
        return None
    lowest, highest, samples, outside = [], [], 0, []
    for rows, column in found:
        low, high = _bounds(column, source)
        if source.is_label:
            low = np.where(low == IGNORED, 0, low)
        known = np.isfinite(high)
        if not known.any():
            continue
        lowest.append(int(low[known].min()))
        highest.append(int(high[known].max()))
        samples += len(high)
        wrong = known & ((low < 0) | (high >= read.rows))
        if wrong.any():
            first = int(wrong.nonzero()[0][0])
            value = low[first] if low[first] < 0 else high[first]
            numbers = [column.samples[place] for place in wrong.nonzero()[0].tolist()]
            outside.append((rows, numbers, int(value)))
    return IdRange(read, min(lowest), max(highest), samples, tuple(outside)) if highest else None


def _bounds(column: Column, source: Source) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The smallest and the largest id of each sample; NaN where it has none."""
    if source.part is None:
        return column.minimum + source.offset, column.maximum + source.offset
    values = np.array(
        [
            float(value[source.part]) if value.ndim == 1 and len(value) > source.part else np.nan
            for value in column.values
        ]
    )
    return values + source.offset, values + source.offset


def without_a_row(found: IdRange, known: int | None, resizes: bool) -> Iterator[Finding]:
    """Ids that the table has no row for.

    Args:
        found: the ids and the table.
        known: how many ids the tokenizer has, where the ids are its.
        resizes: whether the model can be given more rows by ``resize_token_embeddings``.
    """
    read = found.read
    assert read.source is not None
    if not found.outside:
        return
    rows, samples, value = found.outside[0]
    count = sum(len(numbers) for _, numbers, _ in found.outside)
    only_eval = all(split.split == "eval" for split, _, _ in found.outside)
    which = f"a negative id, {value}," if value < 0 else f"id {value}"
    yield fail(
        f"`{read.table}` has {read.rows:,} row{_s(read.rows)} and `{read.source.name}` asks for {which}"
        f"{' in the evaluation data' if only_eval else ''}: {count:,} of {found.samples:,} samples hold an id "
        "without a row, and the lookup raises",
        where=rows.name(samples[0], read.source.path),
        location=read.location,
        hint=_hint(found, value, known, resizes, only_eval),
        rows=read.rows,
        lowest=found.lowest,
        highest=found.highest,
        samples=count,
    )


def _hint(found: IdRange, value: int, known: int | None, resizes: bool, only_eval: bool) -> str:
    if value < 0:
        if known is not None or value == IGNORED:
            return f"pad and mask the inputs with ids of the tokenizer; `{IGNORED}` is for labels only"
        return "number the values from 0, and give a missing value a number of its own"
    if known is not None and found.highest < known:
        if resizes:
            return "call `model.resize_token_embeddings(len(tokenizer))` before training"
        return f"give `{found.read.table}` `len(tokenizer)` rows ({known:,})"
    if found.lowest == 1 and found.highest == found.read.rows:
        return f"the ids begin at 1: subtract 1, or give `{found.read.table}` {found.highest + 1:,} rows"
    if only_eval:
        return "number the values on the training data, with one row for all that it does not hold"
    return f"give `{found.read.table}` {found.highest + 1:,} rows: one more than the largest id of all data"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
