"""Labels that a cheap model does not tell: proof that they belong to other rows, where there is any."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from debugkit import Finding, fail, warn
from debugkit.data.ridge import CrossValidation, one_hot, principal
from debugkit.data.shares import percent
from debugkit.probes.cheap_model import CheapModel, Split, codes_of, skill

from ._groups import clear_groups
from ._wrong_labels import neighbours

Array = np.ndarray[Any, Any]

_AT_CHANCE = 3.0
_CERTAIN = 7.0
_PROMISING = 2.0
_GAIN = 0.3
_FEWEST = 48
_MOVES = (1, -1, 2, -2, 3, -3)
_MANY = 300
_NEIGHBOURS = 5
_SPARE_BITS = 10
_COINCIDENCE = 0.1
_WIDE = 64
_DIRECTIONS = 32


class Unexplained:
    """Training labels that the cheap model does not tell better than chance."""

    def __init__(self, model: CheapModel) -> None:
        self._model = model
        self._train = model.train
        self._codes = model.train.codes
        self._count = len(model.classes)

    def findings(self) -> Iterator[Finding]:
        """The first proof that the labels belong to other inputs."""
        for look in (self._moved, self._repeated, self._evaluation, self._groups, self._tabular):
            if (finding := look()) is not None:
                yield finding
                return

    @cached_property
    def _shares(self) -> Array:
        return np.bincount(self._codes, minlength=self._count) / len(self._codes)

    def _moved(self) -> Finding | None:
        """The labels fit when all are moved by a few rows, or turned around."""
        order = _storage_order(self._train)
        if order is None or len(self._codes) < _FEWEST:
            return None
        best: tuple[float, int | None] = (0.0, None)
        accuracy = 0.0
        independent = self._rows_are_independent(order)
        for move in (*(_MOVES if independent else ()), None):
            codes = self._codes_of_other(order, move)
            if codes is None or skill(*self._model.folds.one_part(codes, self._count)) < _PROMISING:
                continue
            told = self._model.folds.probabilities(codes, self._count)
            if skill(told, codes) > max(best[0], _CERTAIN):
                best = (skill(told, codes), move)
                accuracy = float((told.argmax(1) == codes).mean())
        if not best[0]:
            return None
        move = best[1]
        rows = "row" if move in (1, -1) else "rows"
        where = f"{abs(move)} {rows} {'later' if move > 0 else 'earlier'}" if move else "in reverse order"
        foresight = move is not None and move < 0 and self._train.features.matrix.shape[1] <= _WIDE
        make = warn if foresight else fail
        return make(
            f"the labels belong to other rows: a linear model tells {percent(self._model.accuracy)} of them from "
            f"their own inputs and {percent(accuracy)} if each input gets the label that stands {where}",
            hint="build inputs and labels from the same rows: look for a slice, a filter or a sort that only one of "
            f"them went through{'; ignore this if each row is meant to foretell the next' if foresight else ''}",
            accuracy=self._model.accuracy,
            moved_accuracy=accuracy,
        )

    def _codes_of_other(self, order: Array, move: int | None) -> Array | None:
        """``[n]`` the class of the row that stands ``move`` places later in storage, round the end; reversed for ``None``."""
        given = self._train.given
        table = np.full(self._train.rows.count, -1)
        table[given.samples] = codes_of(given.values, self._model.classes)
        ranked = np.empty(len(order), dtype=np.int64)
        ranked[order] = np.arange(len(order))
        places = ranked[self._train.answers.samples]
        n = len(order)
        others = order[n - 1 - places] if move is None else order[(places + move) % n]
        codes = table[others]
        return codes if (codes >= 0).all() and len(np.unique(codes)) == self._count else None

    def _rows_are_independent(self, order: Array) -> bool:
        """Whether no feature of a row shows in the next one, as it does in series, where a shift is meant."""
        found = principal(self._train.features.matrix, _DIRECTIONS)
        everything = np.full((self._train.rows.count, found.shape[1]), np.nan)
        everything[self._train.answers.samples] = found
        rows = everything[order]
        here, there = rows[:-1], rows[1:]
        both = ~np.isnan(here[:, 0]) & ~np.isnan(there[:, 0])
        here, there = here[both], there[both]
        if len(here) < _FEWEST // 2:
            return False
        here, there = _standardised(here), _standardised(there)
        expected = np.sqrt(2 * np.log(max(here.shape[1] ** 2, 2)) / len(here))
        return float(np.abs(here.T @ there / len(here)).max()) < 1.6 * float(expected)

    def _repeated(self) -> Finding | None:
        """Samples with the same inputs agree in their labels no more often than any two samples.

        Inputs of a few bits are the same by chance, and say nothing then.
        """
        rows, given = self._train.rows, self._train.given
        if len(rows.digests) != rows.count:
            return None
        groups: dict[bytes, list[Any]] = defaultdict(list)
        for sample, value in zip(given.samples.tolist(), given.values.tolist(), strict=True):
            groups[rows.digests[sample]].append(value)
        pairs = [(labels[0], labels[1]) for labels in groups.values() if len(labels) > 1]
        if _bits(self._train) < 2 * np.log2(max(len(given), 2)) + _SPARE_BITS:
            return None
        chance = float((self._shares**2).sum())
        agree = sum(one == other for one, other in pairs)
        if len(pairs) * (1 - chance) < 10 or agree > len(pairs) * chance + 2 * (len(pairs) * chance) ** 0.5:
            return None
        return fail(
            f"the labels do not depend on the inputs: {len(pairs):,} inputs occur more than once, and their labels agree "
            f"{percent(agree / len(pairs))} of the time, as often as those of any two samples ({percent(chance)})",
            hint=_HINT,
            pairs=len(pairs),
            agreeing=agree,
        )

    def _evaluation(self) -> Finding | None:
        """The labels of the evaluation split can be told from the same features."""
        other = self._model.evaluation
        if other is None or len(other.codes) < 2 * _FEWEST or (other.codes < 0).any():
            return None
        if len(self._codes) < len(other.codes) / 2:
            return None
        told = CrossValidation(other.features.matrix).probabilities(other.codes, self._count)
        accuracy = float((told.argmax(1) == other.codes).mean())
        if skill(told, other.codes) < _CERTAIN or accuracy - self._model.accuracy < _GAIN * (
            1 - self._model.accuracy
        ):
            return None
        return fail(
            f"the training labels do not depend on the inputs: a linear model tells {percent(accuracy)} of the "
            f"evaluation labels from their inputs and {percent(self._model.accuracy)} of the training labels, which "
            f"always answering the largest class does too ({percent(self._model.majority)})",
            hint=_HINT,
            accuracy=self._model.accuracy,
            evaluation_accuracy=accuracy,
        )

    def _groups(self) -> Finding | None:
        """The inputs fall into groups as large as the classes, and the labels ignore them."""
        numbers = self._numbers()
        whole = self._train.rows.complete and not self._train.repeated
        if numbers is None or not whole or len(self._codes) < _FEWEST or not self._neighbours_disagree():
            return None
        sizes = np.bincount(self._codes, minlength=self._count)
        found = clear_groups(numbers, sizes)
        if found is None or not _independent(found.members, self._codes, self._count):
            return None
        coincidence = _coincidence(sizes, found.strayed)
        if len(self._codes) < 2 * _FEWEST and coincidence > _COINCIDENCE / 2:
            return None
        make = fail if coincidence < _COINCIDENCE else warn
        return make(
            f"the inputs fall into {self._count} clear groups ({found.apart:.3g} standard deviations apart), as many "
            "and as large as the classes, and the labels have nothing to do with them: a linear model tells "
            f"{percent(self._model.accuracy)} of the labels, always answering the largest class "
            f"{percent(self._model.majority)}",
            hint=_HINT,
            accuracy=self._model.accuracy,
            classes=self._count,
            apart=found.apart,
        )

    def _tabular(self) -> Finding | None:
        """Many rows of related columns, none of which has to do with the labels."""
        numbers = self._numbers()
        if numbers is None or len(self._codes) < _MANY or not _related(numbers):
            return None
        order = _storage_order(self._train)
        if order is None or not self._rows_are_independent(order):
            return None
        if not self._neighbours_disagree() or self._strongest_feature(numbers) > 5:
            return None
        return warn(
            f"nothing in {len(self._codes):,} samples connects inputs and labels: a linear model tells "
            f"{percent(self._model.accuracy)} of them, always answering the largest class "
            f"{percent(self._model.majority)}, and neighbours agree no more often than any two samples",
            hint="check that inputs and labels come from the same rows; if the task is that hard, ignore this",
            accuracy=self._model.accuracy,
            majority=self._model.majority,
        )

    def _numbers(self) -> Array | None:
        """``[n, d]`` the inputs, where all are plain numbers."""
        features = self._train.features
        if any(column.kind not in ("number", "statistic") for column in features.columns):
            return None
        return features.raw.astype(np.float64)

    def _neighbours_disagree(self) -> bool:
        """Whether a sample's neighbours have its class as often as any other sample has."""
        near = neighbours(self._train.features.matrix, _NEIGHBOURS)
        agreement = float((self._codes[near] == self._codes[:, None]).mean())
        chance = float((self._shares**2).sum())
        deviation = (chance * (1 - chance) / len(self._codes)) ** 0.5
        return bool(abs(agreement - chance) < _AT_CHANCE * deviation)

    def _strongest_feature(self, numbers: Array) -> float:
        """The largest z-score of a correlation between a column and membership of a class."""
        hot = _standardised(one_hot(self._codes, self._count))
        return float(np.abs(_standardised(numbers).T @ hot).max() / len(hot) ** 0.5)


_HINT = "build inputs and labels from the same rows: look for a shuffle, a sort or a filter that only one went through"


def at_chance(model: CheapModel) -> bool:
    """Whether the cheap model tells classes no better than always answering the largest one."""
    return model.skill < _AT_CHANCE


def _storage_order(split: Split) -> Array | None:
    """``[count]`` scanned samples in the order of the data set, where all of it was read."""
    indices = split.rows.indices
    if indices is None:
        return np.arange(split.rows.count)
    order = np.argsort(indices)
    gaps = np.diff(np.asarray(indices)[order])
    return order if len(indices) == split.rows.count and (gaps == 1).all() else None


def _standardised(values: Array) -> Array:
    std = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(std > 0, std, 1) * (std > 0))


def _coincidence(sizes: Array, strayed: float) -> float:
    """About how likely groups of random sizes with these shares are as large as the classes, give or take some."""
    total, count = int(sizes.sum()), len(sizes)
    logs = math.lgamma(total + 1) + sum(size * math.log(size / total) for size in sizes.tolist())
    logs -= sum(math.lgamma(size + 1) for size in sizes.tolist())
    _, alike = np.unique(sizes, return_counts=True)
    orders = math.factorial(count) / math.prod(math.factorial(each) for each in alike.tolist())
    return float(min(1.0, math.exp(logs) * orders * (2 * round(strayed) + 1) ** (count - 1)))


def _bits(split: Split) -> float:
    """An upper bound on how many bits the inputs of a sample hold: the entropies of all features, added up."""
    bits = 0.0
    for column in split.features.raw.T:
        _, counts = np.unique(column, return_counts=True)
        shares = counts / counts.sum()
        bits -= float((shares * np.log2(shares)).sum())
        if bits > 100:
            break
    return bits


def _independent(groups: Array, codes: Array, count: int) -> bool:
    """Whether two ways to divide samples have nothing to do with each other (chi-squared)."""
    table = np.zeros((count, count))
    np.add.at(table, (groups, codes), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / len(codes)
    statistic = float(((table - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    freedom = (count - 1) ** 2
    return bool(statistic < freedom + 2.5 * (2 * freedom) ** 0.5)


def _related(numbers: Array) -> bool:
    """Whether a quarter of the directions hold most of the variance, as among columns that measure one thing.

    Few rows of many unrelated columns seem to have such directions by chance, as many as the same columns do after
    each of them was shuffled by itself.
    """
    values = _standardised(numbers)
    values = values[:, np.abs(values).max(0) > 0]
    if values.shape[1] < 4:
        return False
    shuffled = np.random.default_rng(0).permuted(values, axis=0)
    share, by_chance = _leading_share(values), _leading_share(shuffled)
    return share > 0.65 and share - by_chance > 0.5 * (1 - by_chance)


def _leading_share(values: Array) -> float:
    """The share of the variance along the first quarter of the principal directions."""
    spectrum = np.linalg.eigvalsh(values.T @ values)[::-1]
    return float(spectrum[: max(1, values.shape[1] // 4)].sum() / spectrum.sum())
