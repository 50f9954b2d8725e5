"""Rows that were cut: known by their texts, by the ends that they lack, or by how many have the same length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debugkit.probes.token_ids import TokenIds

_FEWEST_ROWS = 20
_FEWEST_CUT = 5
_FEWEST_LENGTHS = 5
_SPREAD_LENGTHS = 8
_DENSE = 0.5
_ABOVE_PEAK = 3
_ABOVE_TAIL = 2
_SIGMAS = 6.0
_MOSTLY = 0.9
_WINDOW = 8
_MOST_WINDOWS = 32
_SLIDE = 0.25
_DEPENDENT = 3.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CutRows:
    """Rows of the greatest length that seem cut.

    Attributes:
        length: the greatest length.
        rows: their numbers.
        why: how it is seen.
    """

    length: int
    rows: Array
    why: str


def cut_rows(lengths: Array, ends: Sequence[int | None]) -> CutRows | None:
    """The rows that are cut, judged by lengths and by what stands at the end of each row.

    Args:
        lengths: ``[rows]``, without padding.
        ends: the last id of each row.

    Returns:
        ``None`` where nothing speaks for it.
    """
    longest = int(lengths.max(initial=0))
    full = np.flatnonzero(lengths == longest)
    shorter = np.flatnonzero((lengths < longest) & (lengths > 0))
    if len(lengths) < _FEWEST_ROWS or len(full) < _FEWEST_CUT or len(shorter) < _FEWEST_LENGTHS:
        return None
    if (endless := _without_end(full, shorter, ends)) is not None:
        return CutRows(longest, endless, "they lack the token at the end of all others")
    if _piles_up(lengths[shorter], len(full), longest):
        return CutRows(longest, full, "far more than of any length near it")
    return None


def _without_end(full: Array, shorter: Array, ends: Sequence[int | None]) -> Array | None:
    """Full rows without the id that ends nearly all of the others."""
    common = Counter(ends[row] for row in shorter).most_common(1)[0]
    if common[0] is None or common[1] < _MOSTLY * len(shorter) or len(shorter) < 2 * _FEWEST_LENGTHS:
        return None
    without = np.array([row for row in full if ends[row] != common[0]])
    return without if len(without) >= max(_FEWEST_CUT, len(full) / 2) else None


def _piles_up(shorter: Array, full: int, longest: int) -> bool:
    """Whether far more rows have the greatest length than any other in the upper half, or in the tail."""
    distinct = len(np.unique(shorter))
    counts = np.bincount(shorter, minlength=longest)
    upper, tail = counts[longest // 2 :], counts[-(-3 * longest // 4) :]
    dense = bool((upper > 0).mean() >= _DENSE)
    if distinct < _FEWEST_LENGTHS or (distinct < _SPREAD_LENGTHS and not dense):
        return False
    several = int((upper > 0).sum()) >= 2 or full > len(shorter)
    peak, before = int(tail.max(initial=0)), int(upper[: len(upper) - len(tail)].max(initial=0))
    falling = len(tail) >= _FEWEST_LENGTHS and bool((tail > 0).mean() >= _DENSE) and peak < before
    stands_out = full > _ABOVE_TAIL * peak and full - peak > _SIGMAS * max(peak, 1) ** 0.5
    return bool(several and (full > _ABOVE_PEAK * int(upper.max(initial=0)) or (falling and stands_out)))


def are_windows(ids: TokenIds, rows: Array) -> bool:
    """Whether the ends of full rows stand earlier in other rows, as with a window that slides."""
    content = [row[start:stop] for row, start, stop in zip(ids.ids, ids.starts, ids.stops, strict=True)]
    everything = np.concatenate(content)
    position = np.concatenate([np.arange(len(row)) for row in content])
    found = tried = 0
    for number in rows[:_MOST_WINDOWS]:
        row = content[number]
        if len(row) >= 2 * _WINDOW:
            tried += 1
            places = _occurrences(everything, row[-_WINDOW - 1 : -1])
            found += bool((position[places] <= len(row) * (1 - _SLIDE) - _WINDOW - 1).any())
    return found > tried / 4


def _occurrences(everything: Array, stretch: Array) -> Array:
    """Where a stretch of ids begins."""
    places = np.arange(max(0, len(everything) - len(stretch) + 1))
    for offset, index in enumerate(stretch):
        places = places[everything[places + offset] == index]
    return places


def are_pieces(lengths: Array, places: Sequence[int] | None) -> bool:
    """Whether neighbours in the data set depend on each other, as the pieces of longer texts do.

    A text in pieces is some full rows and then a shorter one; the lengths of different texts are independent
    (Wald-Wolfowitz).
    """
    order = np.argsort(places) if places is not None and len(places) == len(lengths) else None
    full = (lengths == lengths.max())[order] if order is not None else lengths == lengths.max()
    ones, zeros = int(full.sum()), int((~full).sum())
    if order is None or min(ones, zeros) < 2 * _FEWEST_CUT:
        return False
    runs = 1 + int((full[1:] != full[:-1]).sum())
    total = ones + zeros
    expected = 1 + 2 * ones * zeros / total
    variance = (expected - 1) * (expected - 2) / (total - 1)
    return bool(abs(runs - expected) > _DEPENDENT * max(variance, 1e-9) ** 0.5)
