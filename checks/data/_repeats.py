"""Samples that occur more than once: in groups of the same content, without what the sampler draws again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debugkit.data.chance import Contents
from debugkit.data.provenance import origins
from debugkit.data.rows import Rows

_HANDFUL = 32
_TIMES = 2.5
_POISSON = (0.5, 1.6)


@dataclass(frozen=True, eq=False)
class Repeats:
    """What of the training data occurs more than once.

    Attributes:
        rows: the samples.
        samples: those that count: each place of the data set once.
        groups: samples with the same inputs, largest group first, that chance does not explain.
        by_chance: how many samples repeat an earlier one that may have a twin by chance.
        again: how many more samples there are that a sampler or a ``Subset`` draws again, or a loader that starts anew.
    """

    rows: Rows
    samples: Sequence[int]
    groups: Sequence[Sequence[int]]
    by_chance: int
    again: int

    @property
    def distinct(self) -> int:
        """How many different inputs there are."""
        keys = self.rows.digests
        return len({keys[sample] for sample in self.samples})

    @property
    def is_toy(self) -> bool:
        """Whether it is a handful of samples, written down once and repeated."""
        return is_toy(self.distinct, len(self.samples))

    @property
    def repeats(self) -> list[Sequence[int]]:
        """Samples with the same inputs and the same labels, largest group first."""
        labels = self.rows.label_digests
        found: list[Sequence[int]] = []
        for group in self.groups:
            by_label: dict[bytes, list[int]] = defaultdict(list)
            for sample in group:
                by_label[labels[sample] if labels else b""].append(sample)
            found += [part for part in by_label.values() if len(part) > 1]
        return sorted(found, key=len, reverse=True)

    @property
    def disagreeing(self) -> list[Sequence[int]]:
        """Groups in which the labels differ."""
        labels = self.rows.label_digests
        return [group for group in self.groups if labels and len({labels[sample] for sample in group}) > 1]

    @property
    def is_several_labels_each(self) -> bool:
        """Whether nearly every input comes the same number of times, with labels that differ now and then."""
        if not self.disagreeing:
            return False
        times, groups = Counter(map(len, self.groups)).most_common(1)[0]
        return times * groups >= 0.9 * len(self.samples)


def is_toy(distinct: int, count: int) -> bool:
    """Whether so few different samples, each of them several times, are more likely meant than a mistake."""
    return distinct < _HANDFUL and count >= _TIMES * distinct


def find_repeats(rows: Rows, dataset: Any = None) -> Repeats:
    """Group the samples by their inputs.

    Args:
        rows: the samples.
        dataset: the map-style data set that they come from, where there is one. A loader without one may go
            through its data several times, which its samples do not tell.
    """
    samples = _once(rows, dataset)
    keys = rows.digests
    if dataset is None and rows.indices is None:
        samples = _drawn_at_random(keys, _first_round(keys, samples))
    by_key: dict[bytes, list[int]] = defaultdict(list)
    for sample in samples:
        by_key[keys[sample]].append(sample)
    groups = sorted((group for group in by_key.values() if len(group) > 1), key=len, reverse=True)
    chance = Contents([rows], rows.content).by_chance([(0, group[0]) for group in groups])
    return Repeats(
        rows=rows,
        samples=samples,
        groups=[group for group, explained in zip(groups, chance, strict=True) if not explained],
        by_chance=sum(len(group) - 1 for group, explained in zip(groups, chance, strict=True) if explained),
        again=rows.count - len(samples),
    )


def _once(rows: Rows, dataset: Any) -> list[int]:
    """The first sample of each place in the data set."""
    if rows.indices is None:
        return [*range(rows.count)]
    places = origins(dataset, np.asarray(rows.indices))
    return sorted(np.unique(places, return_index=True)[1].tolist())


def _first_round(keys: Sequence[bytes], samples: list[int]) -> list[int]:
    """The samples up to where they only come again, if up to there all differ."""
    distinct = len({keys[sample] for sample in samples})
    begun = {keys[sample] for sample in samples[:distinct]}
    return samples[:distinct] if distinct < len(samples) and len(begun) == distinct else samples


def _drawn_at_random(keys: Sequence[bytes], samples: list[int]) -> list[int]:
    """One of each sample where a stream draws them with replacement: they come as often as chance has it."""
    first: dict[bytes, int] = {}
    for sample in samples:
        first.setdefault(keys[sample], sample)
    times = np.array([*Counter(keys[sample] for sample in samples).values()])
    if len(times) < _HANDFUL or times.mean() < _TIMES:
        return samples
    low, high = _POISSON
    return [*first.values()] if low < times.var() / times.mean() < high else samples
