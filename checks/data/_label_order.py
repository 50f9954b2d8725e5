"""The classes of the samples in the order in which they come, and how they keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import lgamma, log
from typing import Any

import numpy as np
import torch

from debugkit.data.rows import Rows
from debugkit.probes.label_use import DECLARED, LabelUse
from debugkit.probes.samples import Samples

_SMALL_BATCH = 8
_BLOCK = 16
_PERMUTATIONS = 40
_DEVIATIONS = 6.0
_FEWEST_BATCHES = 4

MAX_EXCESS = 0.5
MAX_DRIFT = 0.25

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class LabelSequence:
    """One class, or one number, per sample, in loader order.

    Attributes:
        path: the labels' place in a batch, such as ``batch[1]``.
        values: ``[n]`` the labels: classes (int64) or numbers (float64), ignored ones left out.
        batches: ``[n]`` the number of each sample's batch.
        places: ``[n]`` the number of each sample in the scan.
        classes: whether the values are classes.
        names: for labels given as texts, the text of each class.
    """

    path: str
    values: Array = field(repr=False)
    batches: Array = field(repr=False)
    places: Array = field(repr=False)
    classes: bool
    names: Mapping[int, str] = field(default_factory=dict)

    def name(self, value: int) -> str:
        """A class as an identifier for a message."""
        return f"`{self.names.get(int(value), int(value))}`"


def label_sequences(
    samples: Samples, use: LabelUse | None, ignored: frozenset[int]
) -> Iterator[LabelSequence]:
    """The labels of the scanned samples that can be judged by their order."""
    for path in _paths(samples, use):
        if (found := _sequence(samples, path, ignored)) is not None:
            yield found


def _paths(samples: Samples, use: LabelUse | None) -> list[str]:
    """The places of what the step takes as labels; where that was not followed, what the batch's shape says."""
    rows = samples.rows
    declared = [column.path for column in rows.labels] + sorted(rows.label_texts)
    if samples.origin == "given":
        return declared
    if use is not None:
        chosen = [
            path.removeprefix("batch").removeprefix(".") for path, one in use.sources.items() if one.is_label
        ]
        if chosen := [path for path in chosen if path in rows.columns]:
            return chosen
        if DECLARED in use.sources and not use.sources[DECLARED].used:
            return []
    return declared if samples.origin in ("named", "pair") else []


def _sequence(samples: Samples, path: str, ignored: frozenset[int]) -> LabelSequence | None:
    rows = samples.rows
    batches = np.repeat(np.arange(len(rows.batch_sizes)), rows.batch_sizes)
    where = f"batch{path}" if path.startswith("[") else f"batch.{path}"
    if path in rows.texts:
        texts = rows.texts[path]
        names, values = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
        if len(texts) != rows.count or 2 * len(names) > len(texts):
            return None
        every = np.arange(rows.count)
        return LabelSequence(where, values, batches, every, True, dict(enumerate(names.tolist())))
    column = rows.columns[path]
    stacked = column.stacked() if len(column.values) == rows.count and not column.reduced else None
    if stacked is None or "[]" in path or stacked.is_complex():
        return None
    kind = samples.labels.kind if samples.origin == "given" or path not in samples.candidates else "classes"
    labels = stacked.reshape(len(stacked), -1)
    if kind == "values" and labels.shape[1] == 1:
        numbers = labels[:, 0].double().numpy()
        kept = np.isfinite(numbers)
        return LabelSequence(where, numbers[kept], batches[kept], np.flatnonzero(kept), False)
    if kind not in ("classes", "multi-label") or (classes := _classes(labels)) is None:
        return None
    kept = ~np.isin(classes, sorted(ignored)) if labels.shape[1] == 1 else np.ones(len(classes), bool)
    return LabelSequence(where, classes[kept], batches[kept], np.flatnonzero(kept), True)


def _classes(labels: torch.Tensor) -> Array | None:
    """``[n]``: the class of each row; each combination of labels that are on counts as a class of its own."""
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        return None
    classes = labels[:, 0] if labels.shape[1] == 1 else torch.unique(labels, dim=0, return_inverse=True)[1]
    return np.asarray(classes.long())


@dataclass(frozen=True)
class Runs:
    """How classes follow each other.

    Attributes:
        samples: how many were seen.
        classes: how many classes.
        runs: how many unbroken runs of one class.
        sorted_by_chance: base-10 logarithm of the probability that a random order has one run per class.
    """

    samples: int
    classes: int
    runs: int
    sorted_by_chance: float

    @staticmethod
    def of(values: Array) -> Runs:
        """Count the runs in ``[n]`` classes."""
        counts = np.unique(values, return_counts=True)[1].tolist()
        ways = lgamma(len(counts) + 1) + sum(lgamma(count + 1) for count in counts)
        return Runs(
            samples=len(values),
            classes=len(counts),
            runs=1 + int((values[1:] != values[:-1]).sum()),
            sorted_by_chance=(ways - lgamma(len(values) + 1)) / log(10),
        )


@dataclass(frozen=True)
class Purity:
    """How far batches hold one class each.

    Attributes:
        batches: how many batches of two or more samples.
        pure: how many of them hold a single class.
        share: how often two samples of a batch have the same class.
        chance: how often any two samples have.
        excess: 0 where the share is that of chance, 1 where it is 1; below 0 for balanced batches.
        drift: the same for a sample and one of the batch that follows.
        deviations: how many standard deviations the excess is above that of random orders.
        in_turn: whether the batches are pure and their classes take turns.
        block: where batches are too small to judge, how many consecutive samples were taken for one.
    """

    batches: int
    pure: int
    share: float
    chance: float
    excess: float
    drift: float
    deviations: float
    in_turn: bool
    block: int | None

    @staticmethod
    def of(sequence: LabelSequence) -> Purity:
        """Compare batches with random orders of the same labels."""
        codes = np.unique(sequence.values, return_inverse=True)[1]
        batches, block = sequence.batches, None
        if np.median(np.unique(batches, return_counts=True)[1]) < _SMALL_BATCH:
            batches, block = np.arange(len(codes)) // _BLOCK, _BLOCK
        table = _table(codes, batches)
        sizes = table.sum(1)
        table, sizes = table[sizes > 1], sizes[sizes > 1]
        chance = _agreement(table.sum(0, keepdims=True))
        seen, following = _agreement(table), _agreement_with_next(table)
        rng = np.random.default_rng(0)
        shuffled = [_agreement(_table(rng.permutation(codes), batches)) for _ in range(_PERMUTATIONS)]
        spread = max(float(np.std(shuffled)), 1e-12)
        pure = table.max(1) == sizes if len(table) else np.zeros(0, bool)
        return Purity(
            batches=len(table),
            pure=int(pure.sum()),
            share=seen,
            chance=chance,
            excess=(seen - chance) / (1 - chance) if chance < 1 else 0.0,
            drift=(following - chance) / (1 - chance) if chance < 1 else 0.0,
            deviations=(seen - chance) / spread,
            in_turn=bool(pure.all()) and _takes_turns(table.argmax(1)),
            block=block,
        )


def _table(codes: Array, batches: Array) -> Array:
    """``[batches, classes]``: how many samples of each class each batch holds."""
    table = np.zeros((int(batches.max(initial=-1)) + 1, int(codes.max(initial=-1)) + 1), np.int64)
    np.add.at(table, (batches, codes), 1)
    return table


def _agreement(table: Array) -> float:
    """How often two samples of a batch share their class."""
    sizes = table.sum(1)
    pairs = float((sizes * (sizes - 1)).sum())
    return float((table * (table - 1)).sum()) / pairs if pairs else 0.0


def _agreement_with_next(table: Array) -> float:
    """How often a sample of a batch and one of the next share their class."""
    pairs = float((table[1:].sum(1) * table[:-1].sum(1)).sum())
    return float((table[1:] * table[:-1]).sum()) / pairs if pairs else 0.0


def _takes_turns(classes: Array) -> bool:
    count = len(np.unique(classes))
    return len(classes) >= 2 * count > 2 and bool((classes[count:] == classes[:-count]).all())


def comes_in_blocks(purity: Purity, max_excess: float = MAX_EXCESS, max_drift: float = MAX_DRIFT) -> bool:
    """Whether batches hold few classes, or batches that follow each other the same ones, beyond chance."""
    if purity.deviations <= _DEVIATIONS or purity.batches < _FEWEST_BATCHES or purity.in_turn:
        return False
    return purity.excess > max_excess or min(purity.excess, purity.drift) > max_drift


def in_storage_order(rows: Rows) -> bool:
    """Whether the loader goes through the data set from its first sample on."""
    return rows.indices is not None and list(rows.indices) == list(range(len(rows.indices)))
