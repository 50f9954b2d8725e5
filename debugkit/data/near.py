"""Rows of tokens, words or time steps that are nearly the same: edited copies, and overlapping windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Relation = Literal["copy", "window"]

_COPY = 0.8
_WINDOW = 0.6
_FEWEST_SHINGLES = 8
_FEWEST_CODES = 5
_COMMON = 0.05
_COMMON_ROWS = 8
_LONGEST_EDIT = 3
_MOST_CANDIDATES = 16
_MOST_STEPS = 512


@dataclass(frozen=True)
class Match:
    """Two rows that are nearly the same.

    Attributes:
        row: the number of the row.
        other: the number of the row that it resembles.
        relation: ``copy`` with a few tokens changed here and there, or a ``window`` moved along the same text.
        similarity: Jaccard similarity of their shingles.
    """

    row: int
    other: int
    relation: Relation
    similarity: float


def near_matches(
    rows: Sequence[Array],
    others: Sequence[Array] | None = None,
    *,
    width: int = 3,
    common: int = _COMMON_ROWS,
) -> list[Match]:
    """For each row the first other one that nearly equals it, if there is one.

    Rows are compared as sets of shingles. Two rows whose sets have a Jaccard similarity of at least t share one
    of the rarest shingles of either, so that all pairs are found without comparing every row with every other.
    Shingles that many rows share, such as those of a common prompt, do not count. A copy has a similarity of at
    least 0.8, and no edit longer than three tokens: the same passage with another question is no copy.
    Rows that are the same from end to end need no more than five tokens.

    Args:
        rows: per row its codes ``[length]`` int64.
        others: where to look for the like; earlier rows by default.
        width: codes in a shingle.
        common: rows that may share a shingle; at least 5 % of all may.

    References:
        Chaudhuri, Ganti, Kaushik 2006, https://doi.org/10.1109/ICDE.2006.9 (prefix filtering)
        Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900 (shingles)
    """
    everything = [row[:_MOST_STEPS] for row in (*rows, *(others or ()))]
    sets = _rarest_first([_shingles(row, width) for row in everything], common)
    index: dict[int, list[int]] = defaultdict(list)

    def enter(number: int) -> None:
        for shingle in _prefix(sets[number]):
            index[shingle].append(number)

    for number in range(len(rows), len(everything)):
        enter(number)
    found = []
    same: dict[bytes, int] = {}
    for number in reversed(range(len(rows), len(everything))):
        same[everything[number].tobytes()] = number
    for number in range(len(rows)):
        if len(row := everything[number]) >= _FEWEST_CODES and (twin := same.get(row.tobytes())) is not None:
            found.append(Match(number, twin, "copy", 1.0))
            continue
        if others is None:
            same[row.tobytes()] = number
        match = _first_match(number, everything, sets, _candidates(sets[number], index))
        if match is not None:
            found.append(match)
        if others is None:
            enter(number)
    offset = 0 if others is None else len(rows)
    return [Match(m.row, m.other - offset, m.relation, m.similarity) for m in found]


def _shingles(row: Array, width: int) -> Array:
    """The set of shingles of a row, as hashes."""
    count = len(row) - width + 1
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    with np.errstate(over="ignore"):
        hashed = np.zeros(count, dtype=np.int64)
        for place in range(width):
            hashed = (hashed ^ row[place : place + count]) * np.int64(0x9E3779B97F4A7C1)
            hashed ^= hashed >> np.int64(29)
    return np.unique(hashed)


def _rarest_first(sets: Sequence[Array], common: int) -> list[list[int]]:
    """The shingles of each row from the rarest on, without those that many rows share."""
    if not sets:
        return []
    shingles, counts = np.unique(np.concatenate(sets), return_counts=True)
    limit = max(common, _COMMON * len(sets))
    ordered = []
    for row in sets:
        count = counts[np.searchsorted(shingles, row)]
        order = np.lexsort((row, count))
        ordered.append(row[order[: int((count <= limit).sum())]].tolist())
    return ordered


def _prefix(shingles: list[int]) -> list[int]:
    if len(shingles) < _FEWEST_SHINGLES:
        return []
    return shingles[: len(shingles) - int(np.ceil(_WINDOW * len(shingles))) + 1]


def _candidates(shingles: list[int], index: dict[int, list[int]]) -> Iterable[int]:
    """Rows that share one of the rarest shingles, those that share most first."""
    shared: dict[int, int] = defaultdict(int)
    for shingle in _prefix(shingles):
        for other in index.get(shingle, ()):
            shared[other] += 1
    return sorted(shared, key=lambda other: -shared[other])[:_MOST_CANDIDATES]


def _first_match(
    number: int, rows: Sequence[Array], sets: Sequence[list[int]], candidates: Iterable[int]
) -> Match | None:
    mine = set(sets[number])
    for other in candidates:
        theirs = sets[other]
        both = len(mine.intersection(theirs))
        similarity = both / (len(mine) + len(theirs) - both)
        if similarity < _WINDOW:
            continue
        if is_window(rows[number], rows[other]):
            return Match(number, other, "window", similarity)
        if similarity >= _COPY and is_edited(rows[number].tolist(), rows[other].tolist()):
            return Match(number, other, "copy", similarity)
    return None


def is_window(row: Array, other: Array) -> bool:
    """Whether two rows of one length are the same sequence, seen from places up to 40 % of it apart."""
    length = len(row)
    if length != len(other):
        return False
    return any(
        np.array_equal(row[shift:], other[: length - shift])
        or np.array_equal(other[shift:], row[: length - shift])
        for shift in range(1, int(length * (1 - _WINDOW)) + 1)
    )


def is_edited(row: list[int], other: list[int], longest: int = _LONGEST_EDIT) -> bool:
    """Whether two rows differ in short places only.

    Args:
        row: codes.
        other: codes.
        longest: how many codes one place may hold in either row.
    """
    here = there = 0
    while here < len(row) and there < len(other):
        if row[here] == other[there]:
            here, there = here + 1, there + 1
            continue
        step = next(
            (
                (total - skip, skip)
                for total in range(1, 2 * longest + 1)
                for skip in range(max(0, total - longest), min(longest, total) + 1)
                if _agree(row, here + total - skip, other, there + skip)
            ),
            None,
        )
        if step is None:
            break
        here, there = here + step[0], there + step[1]
    return len(row) - here <= longest and len(other) - there <= longest


def _agree(row: list[int], here: int, other: list[int], there: int) -> bool:
    """Whether two rows go on with the same two codes, or end together."""
    one, two = row[here : here + 2], other[there : there + 2]
    return one == two and (len(one) == 2 or (here + len(one) >= len(row) and there + len(two) >= len(other)))
