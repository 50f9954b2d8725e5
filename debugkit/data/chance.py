"""Whether samples are the same by chance: how much they hold, and whether their parts occur apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from debugkit.data.phrases import Phrases
from debugkit.data.rows import Rows

Array = np.ndarray[Any, Any]

_MOST_ROWS = 2048
_MOST_PLACES = 256
_SPARE_BITS = 20
_CONTINUOUS_BITS = 32.0
_FEWEST = 8
_HALVINGS = 4
_WIDE = 64
_BLANK_RUNS = 8
_RESOLVED = 1e5
_MOST_TOKENS = 200_000
_MOST_PARSED = 600
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, eq=False)
class _Table:
    """One key of the samples as codes.

    Attributes:
        codes: ``[samples, places]`` int64: equal for equal values; 0 where there is none.
        present: ``[samples, places]``: whether there is a value.
        is_sequence: whether a value means the same at every place, as words and tokens do.
        is_floating: whether the codes are the bits of float64 numbers.
    """

    codes: Array
    present: Array
    is_sequence: bool = False
    is_floating: bool = False


class Contents:
    """The samples of one split or several, compared by what they hold.

    Args:
        splits: the scanned samples.
        paths: the keys that count.

    Attributes:
        keys: per split and sample, a hash of what it holds.
    """

    def __init__(self, splits: Sequence[Rows], paths: Sequence[str]) -> None:
        self._splits = splits
        self._paths = paths
        self.keys = [rows.contents(paths) for rows in splits]

    def by_chance(self, chosen: Sequence[tuple[int, int]], likes: Sequence[tuple[int, int]] = ()) -> Array:
        """Which samples may have a twin by chance.

        A twin is no coincidence if the sample holds 20 bits more than it takes to tell all samples apart, with
        each value counted by how rare it is, a run of equal values once, and a phrase that occurs in another
        sample's text by its place there; and if half of its values, drawn at random, already single it out, as they
        do in a copy, but not where a few categories are combined freely.

        Args:
            chosen: pairs of split and sample, no two with the same content.
            likes: samples that nearly equal the chosen ones, which say nothing about how rare those are.

        Returns:
            ``[chosen]`` bool.
        """
        if not chosen:
            return np.zeros(0, dtype=bool)
        reference = self._reference(chosen, likes)
        members = [*reference, *chosen]
        tables = [self._table(path, members) for path in self._paths]
        count = sum(rows.count for rows in self._splits)
        least = float(np.log2(max(count, 2)) + _SPARE_BITS)
        known = 0 if likes else min(len(chosen), _MOST_ROWS // 2)
        bits = np.sum([_bits(table, len(reference), known, least) for table in tables], axis=0)
        return np.asarray(~((bits >= least) & _singled_out(tables, len(reference))))

    def _reference(
        self, chosen: Sequence[tuple[int, int]], likes: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Samples that all differ, drawn from everywhere, the chosen ones first unless others are like them."""
        found = [] if likes else [*chosen[: _MOST_ROWS // 2]]
        seen = {self.keys[split][sample] for split, sample in (*chosen, *likes)}
        everyone = [
            (split, sample) for split, rows in enumerate(self._splits) for sample in range(rows.count)
        ]
        for place in np.random.default_rng(0).permutation(len(everyone)):
            if len(found) >= _MOST_ROWS:
                break
            split, sample = everyone[place]
            if (key := self.keys[split][sample]) not in seen:
                seen.add(key)
                found.append((split, sample))
        return found

    def _table(self, path: str, members: Sequence[tuple[int, int]]) -> _Table:
        if any(path in rows.texts for rows in self._splits):
            words: dict[str, int] = {}
            texts = [_WORD.findall(self._splits[split].texts[path][sample]) for split, sample in members]
            coded = [
                np.array([words.setdefault(word, len(words) + 1) for word in text], dtype=np.int64)
                for text in texts
            ]
            return _padded(coded, is_sequence=True)
        columns = [rows.columns[path] for rows in self._splits]
        values = [columns[split].values[sample] for split, sample in members]
        floating = any(value.is_floating_point() for value in values)
        single = all(value.ndim == 1 for value in values)
        whole = all(value.dtype in (torch.int64, torch.int32, torch.int16) for value in values)
        coded = [_codes(value, floating) for value in values]
        return _padded(coded, is_sequence=single and whole, is_floating=floating)


def _codes(value: torch.Tensor, floating: bool) -> Array:
    flat = value.flatten()
    if floating:
        return np.asarray(flat.double().numpy() + 0.0).view(np.int64)
    return flat.long().numpy()


def _padded(codes: Sequence[Array], *, is_sequence: bool = False, is_floating: bool = False) -> _Table:
    longest = max((len(code) for code in codes), default=0)
    step = 1 if is_sequence else max(1, -(-longest // _MOST_PLACES))
    places = min(-(-longest // step), _MOST_PLACES)
    table = np.zeros((len(codes), places), dtype=np.int64)
    present = np.zeros((len(codes), places), dtype=bool)
    for row, code in enumerate(codes):
        kept = code[::step][:places]
        table[row, : len(kept)] = kept
        present[row, : len(kept)] = True
    return _Table(table, present, is_sequence, is_floating)


def _bits(table: _Table, count: int, own: int, least: float) -> Array:
    """``[asked]``: how much each row after the first ``count`` holds beside those, exactly up to ``least``.

    The first ``own`` rows of all are the first of those in question. Wide rows of a few runs are blank.
    """
    known, asked = table.codes[:count], table.codes[count:]
    present = table.present[count:].copy()
    present[:, 1:] &= (asked[:, 1:] != asked[:, :-1]) | ~table.present[count:, :-1]
    if asked.shape[1] >= _WIDE and not table.is_sequence:
        present &= present.sum(1, keepdims=True) >= _BLANK_RUNS
    bits = np.zeros(asked.shape)
    anywhere = _Shares(known[table.present[:count]]) if table.is_sequence else None
    for place in range(asked.shape[1]):
        here = known[:, place][table.present[:count, place]]
        if not len(here):
            continue
        shares = _Shares(here)
        if table.is_floating and (states := shares.states()) is not None:
            bits[:, place] = states
        else:
            bits[:, place] = shares.bits(asked[:, place])
            if anywhere is not None:
                bits[:, place] = np.minimum(bits[:, place], anywhere.bits(asked[:, place]))
    total: Array = (bits * present).sum(1)
    return np.minimum(total, _phrase_bits(table, count, own, least)) if table.is_sequence else total


def _phrase_bits(table: _Table, count: int, own: int, least: float) -> Array:
    """``[asked]``: the bits that name the phrases of other rows which a row is made of."""
    rows = [codes[present] for codes, present in zip(table.codes, table.present, strict=True)]
    room = int(np.searchsorted(np.cumsum([len(row) for row in rows[:count]]), _MOST_TOKENS))
    phrases = Phrases(rows[: max(room, 1)])
    most = int(least / phrases.bits) + 1
    bits = np.full(len(rows) - count, np.inf)
    for number, row in enumerate(rows[count : count + _MOST_PARSED]):
        known = number if number < min(room, own) else None
        bits[number] = phrases.bits * phrases.count(row, known, most)
    return bits


class _Shares:
    """How often each of some codes occurs."""

    def __init__(self, codes: Array) -> None:
        self._count = len(codes)
        self._codes, self._counts = np.unique(codes, return_counts=True)

    def bits(self, codes: Array) -> Array:
        """``-log2`` of the share of each code; one that does not occur counts as if it did once."""
        place = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        counts = np.where(self._codes[place] == codes, self._counts[place], 1)
        return np.asarray(-np.log2(counts / self._count))

    def states(self) -> float | None:
        """For floating point numbers that are nearly all different: bits of what they could be.

        Rounded numbers lie on a grid, and could be any of its points.
        """
        if self._count < _FEWEST or len(self._codes) < 0.9 * self._count:
            return None
        values = self._codes.view(np.float64)
        values = np.sort(values[np.isfinite(values)])
        if len(values) < _FEWEST or not (gaps := np.diff(values))[gaps > 0].size:
            return None
        gap = gaps[gaps > 0].min()
        for part in range(1, 11):
            points = (values - values[0]) / (gap / part)
            if points[-1] > _RESOLVED:
                return _CONTINUOUS_BITS
            if np.mean(np.abs(points - np.round(points)) < 0.05) > 0.95:
                return float(np.log2(points[-1] + 1))
        return _CONTINUOUS_BITS


def _singled_out(tables: Sequence[_Table], count: int) -> Array:
    """``[asked]``: whether one half of the values tells a row from all others, however they are halved.

    Sequences are not torn apart.
    """
    generator = np.random.default_rng(0)
    asked = len(tables[0].codes) - count
    hashes = []
    for table in tables:
        mixed = _mixed(table.codes * table.present, generator.integers(0, 2**63, table.codes.shape[1]))
        hashes.append(mixed.sum(1, keepdims=True) if table.is_sequence else mixed)
    parts = np.concatenate(hashes, 1)
    if parts.shape[1] < 4:
        return np.ones(asked, dtype=bool)
    found = np.ones(asked, dtype=bool)
    for _ in range(_HALVINGS):
        half = generator.permutation(parts.shape[1])
        middle = len(half) // 2
        found &= _is_alone(parts[:, half[:middle]].sum(1), count) | _is_alone(
            parts[:, half[middle:]].sum(1), count
        )
    return found


def _is_alone(hashes: Array, count: int) -> Array:
    """Whether a hash after the first ``count`` occurs at most once among those."""
    found, counts = np.unique(hashes[:count], return_counts=True)
    place = np.minimum(np.searchsorted(found, hashes[count:]), len(found) - 1)
    return np.asarray((found[place] != hashes[count:]) | (counts[place] <= 1))


def step_hashes(values: torch.Tensor) -> Array:
    """``[rows, steps]`` int64 hashes of ``[rows, steps, values]``, equal for equal steps."""
    rows, steps, width = values.shape
    codes = _codes(values, floating=True).reshape(rows * steps, width)
    salt = np.random.default_rng(0).integers(0, 2**63, width)
    with np.errstate(over="ignore"):
        return np.asarray(_mixed(codes, salt).sum(1).view(np.int64).reshape(rows, steps))


def _mixed(codes: Array, salt: Array) -> Array:
    """Well spread hashes (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = codes.view(np.uint64) + salt.astype(np.uint64)[None, :]
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))
