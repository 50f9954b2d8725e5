"""Whether an input reaches a layer's weights as the loader gave it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from debugkit.data.rows import Column, Rows
from debugkit.tracing.entries import Entry

_LAST_DIMENSION = ("linear", "lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Spread:
    """The values of a column in the first batch.

    Attributes:
        minimum: smallest value.
        maximum: largest value.
        mean: of all values.
        std: their population standard deviation.
    """

    minimum: float
    maximum: float
    mean: float
    std: float

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.minimum), abs(self.maximum))


def arrivals(column: Column, rows: Rows, entries: Iterable[Entry]) -> list[Entry]:
    """The layers that take the values of a column unchanged, by the statistics of the first batch."""
    first = _first_batch(column, rows)
    if first is None:
        return []
    return [entry for entry in entries if any(_matches(entry, first, column.is_floating))]


def unit_axis(column: Column, entry: Entry) -> int | None:
    """The dimension of a sample that a layer takes as its features, where the layer takes samples as they are."""
    shape = column.shapes.most_common(1)[0][0]
    if not shape or tuple(entry.shape[1:]) != shape:
        return None
    if entry.dims:
        return 0
    return len(shape) - 1 if entry.op in _LAST_DIMENSION else None


def called(entry: Entry) -> str:
    """How findings call a layer."""
    return f"`{entry.module}`" if entry.module else f"the first `{entry.op}`"


def _first_batch(column: Column, rows: Rows) -> Spread | None:
    size = rows.batch_sizes[0] if rows.batch_sizes else 0
    inside = [place for place, sample in enumerate(column.samples) if sample < size]
    mean, std = column.mean[inside], column.std[inside]
    finite = np.isfinite(mean)
    if not finite.any() or column.nonfinite[inside].any():
        return None
    middle = float(mean[finite].mean())
    spread = float(np.sqrt((std[finite] ** 2 + (mean[finite] - middle) ** 2).mean()))
    return Spread(
        float(column.minimum[inside][finite].min()),
        float(column.maximum[inside][finite].max()),
        middle,
        spread,
    )


def _matches(entry: Entry, first: Spread, joinable: bool) -> Iterator[bool]:
    """All of the values, a part of them, or (where they are no ids) all of them beside something smaller."""
    width = first.maximum - first.minimum
    if width <= 0 or first.std <= 0:
        return
    off = abs(entry.mean - first.mean) / first.std
    ratio = entry.std / first.std
    above, below = (entry.maximum - first.maximum) / width, (first.minimum - entry.minimum) / width
    exact = max(abs(above), abs(below)) < 0.02
    yield exact and off < 0.05 and abs(ratio - 1) < 0.1
    yield max(above, below) < 0.02 and off < 0.2 and 0.8 < ratio < 1.25
    largest = max(abs(entry.minimum), abs(entry.maximum))
    yield joinable and first.largest > 10 and abs(largest / first.largest - 1) < 0.01
