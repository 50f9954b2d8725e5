"""Bags of terms: which tokens, pairs of neighbours and tokens at a place occur in a row of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
View = Literal["token", "pair", "place"]
VIEWS: tuple[View, ...] = ("token", "pair", "place")

_MOST = {"token": 448, "pair": 160, "place": 160}
_FEWEST = 3
_ENDS = 4
_SHORT = 16
_SPAN = 2**31
_MIDDLE = 2**30


@dataclass(frozen=True, eq=False)
class Bag:
    """The terms of one view that occur in some rows but not in all.

    Attributes:
        view: a ``token`` anywhere, a ``pair`` of neighbours, or a token at one ``place``.
        keys: ``[k]`` int64, ascending.
        span: of tokens at a place, how many places from the start and from the end count.
    """

    view: View
    keys: Array = field(repr=False)
    span: int

    @staticmethod
    def of(rows: Sequence[Array], view: View) -> Bag:
        """The terms that tell most: in at least three rows and missing in one, the most frequent ones."""
        longest = max((len(row) for row in rows), default=0)
        span = longest if longest <= _SHORT else _ENDS
        _, keys = _occurrences(rows, view, span)
        terms, counts = np.unique(keys, return_counts=True)
        kept = (counts >= _FEWEST) & (counts < len(rows))
        terms, counts = terms[kept], counts[kept]
        order = np.argsort(np.abs(counts - len(rows) / 2), kind="stable")[: _MOST[view]]
        return Bag(view, np.sort(terms[order]), span)

    def matrix(self, rows: Sequence[Array]) -> Array:
        """``[n, k]`` float32: 1 where a row has the term."""
        found = np.zeros((len(rows), len(self.keys)), dtype=np.float32)
        if len(self.keys):
            samples, keys = _occurrences(rows, self.view, self.span)
            places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            known = self.keys[places] == keys
            found[samples[known], places[known]] = 1
        return found

    def terms(self) -> list[tuple[tuple[int, ...], int | None]]:
        """Per key its token ids, and its position (from the end where negative)."""
        first, second = (self.keys // _SPAN).tolist(), (self.keys % _SPAN - _MIDDLE).tolist()
        if self.view == "pair":
            return [((a - _MIDDLE, b), None) for a, b in zip(first, second, strict=True)]
        if self.view == "place":
            return [((b,), a - _SPAN // 4) for a, b in zip(first, second, strict=True)]
        return [((b,), None) for b in second]


def _occurrences(rows: Sequence[Array], view: View, span: int) -> tuple[Array, Array]:
    """``(row numbers, keys)`` of the different terms of each row."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([*rows, np.zeros(0, dtype=np.int64)]).astype(np.int64) + _MIDDLE
    owners = np.repeat(np.arange(len(rows)), lengths)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(ids)) - starts[owners] if len(ids) else np.zeros(0, dtype=np.int64)
    if view == "pair":
        follows = np.flatnonzero(owners[1:] == owners[:-1])
        return _different(owners[follows], ids[follows] * _SPAN + ids[follows + 1])
    if view == "place":
        early = place < span
        from_end = place - lengths[owners]
        late = (from_end >= -span) & ~early
        at = np.where(early, place, from_end) + _SPAN // 4
        kept = early | late
        return _different(owners[kept], at[kept] * _SPAN + ids[kept])
    return _different(owners, ids)


def _different(owners: Array, keys: Array) -> tuple[Array, Array]:
    if not len(keys):
        return owners, keys
    table, codes = np.unique(keys, return_inverse=True)
    both = np.unique(owners.astype(np.int64) * len(table) + codes)
    return both // len(table), table[both % len(table)]
