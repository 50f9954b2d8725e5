"""Samples as one sequence each: the words or token ids of all their texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from debugkit.data.chance import Contents
from debugkit.data.near import Match, near_matches
from debugkit.data.rows import Column, Rows

Array = np.ndarray[Any, Any]

_WORD = re.compile(r"\w+")
_FEWEST_TOKENS = 10
_MOST_ROWS = 6000
_FAMILY = 3
_PADDING = 3


class Passages:
    """The samples of one split or several as sequences.

    Args:
        splits: the scanned samples.
        paths: the keys that count.
    """

    def __init__(self, splits: Sequence[Rows], paths: Sequence[str]) -> None:
        self._splits = splits
        self._paths = [path for path in paths if all(_is_sequence(rows, path) for rows in splits)]
        self._rest = [path for path in paths if path not in self._paths]
        self._words: dict[str, int] = {}

    @property
    def are_there(self) -> bool:
        """Whether the samples have texts or token ids."""
        return bool(self._paths)

    def of(self, split: int, samples: Sequence[int]) -> list[Array]:
        """Per sample its codes ``[length]`` int64."""
        rows = self._splits[split]
        return [
            np.concatenate([self._codes(rows, path, sample) for path in self._paths]) for sample in samples
        ]

    def rest(self, split: int) -> list[bytes]:
        """Per sample, what it holds apart from its sequences."""
        rows = self._splits[split]
        return rows.contents(self._rest) if self._rest else [b""] * rows.count

    def _codes(self, rows: Rows, path: str, sample: int) -> Array:
        if path in rows.texts:
            words = _WORD.findall(rows.texts[path][sample].lower())
            return np.array(
                [self._words.setdefault(word, len(self._words)) for word in words], dtype=np.int64
            )
        return _without_ends(rows.columns[path].values[sample].long().numpy())


def _is_sequence(rows: Rows, path: str) -> bool:
    if path in rows.texts:
        return True
    column = rows.columns[path]
    whole = column.dtype in (torch.int64, torch.int32)
    return (
        whole and not column.reduced and all(len(shape) == 1 for shape in column.shapes) and _is_long(column)
    )


def _is_long(column: Column) -> bool:
    return max(shape[0] for shape in column.shapes) >= _FEWEST_TOKENS


def _without_ends(codes: Array) -> Array:
    """Codes with what comes three times or more at either end, as padding does, kept once."""
    changes = np.flatnonzero(np.diff(codes))
    if not len(changes):
        return codes[:1]
    first = changes[0] if changes[0] >= _PADDING - 1 else 0
    last = changes[-1] + 2 if len(codes) - changes[-1] - 1 >= _PADDING else len(codes)
    return codes[first:last]


def edited_copies(
    splits: Sequence[Rows], paths: Sequence[str], samples: Sequence[Sequence[int]], *, same_labels: bool
) -> list[Match]:
    """Samples that nearly repeat another one: an earlier one of a single split, one of the second of two splits.

    Texts made from a template resemble many others and do not count, nor does what chance explains.

    Args:
        splits: the scanned samples of one split or two.
        paths: the keys that are compared.
        samples: per split the samples to compare, all of different content.
        same_labels: whether copies need the same labels too; the labels of a language model change with its text.

    Returns:
        Matches by the numbers of the samples.
    """
    passages = Passages(splits, paths)
    if not passages.are_there:
        return []
    chosen = [[*numbers][:_MOST_ROWS] for numbers in samples]
    found = near_matches(*(passages.of(split, numbers) for split, numbers in enumerate(chosen)))
    last = len(splits) - 1
    matches = [Match(chosen[0][m.row], chosen[last][m.other], m.relation, m.similarity) for m in found]
    rest = [passages.rest(0), passages.rest(last)]
    matches = [match for match in matches if rest[0][match.row] == rest[1][match.other]]
    copies = [match for match in matches if match.relation == "copy"]
    if same_labels and (labels := [rows.label_digests for rows in splits]) and all(labels):
        copies = [match for match in copies if labels[0][match.row] == labels[last][match.other]]
    copies = _few_of_a_kind(copies, cross=last > 0)
    chance = Contents(splits, paths).by_chance(
        [(0, match.row) for match in copies], likes=[(last, match.other) for match in copies]
    )
    windows = [match for match in matches if match.relation == "window"]
    return [match for match, explained in zip(copies, chance, strict=True) if not explained] + windows


def _few_of_a_kind(matches: Sequence[Match], *, cross: bool) -> list[Match]:
    """The matches in families of few members."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(member: tuple[int, int]) -> tuple[int, int]:
        while (above := parent.setdefault(member, member)) != member:
            member = above
        return member

    for match in matches:
        parent[root((0, match.row))] = root((int(cross), match.other))
    members = Counter(root(member) for member in [*parent])
    return [match for match in matches if members[root((0, match.row))] <= _FAMILY]
