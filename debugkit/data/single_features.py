"""What one feature alone tells about the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from debugkit.data.feature_blocks import Feature
from debugkit.data.ridge import CrossValidation, one_hot
from debugkit.probes.cheap_model import CheapModel

Array = np.ndarray[Any, Any]

_FEWEST_PER_VALUE = 3
_MANY_VALUES = 50
_SAME = 0.9


@dataclass(frozen=True, eq=False)
class SingleFeature:
    """One feature, or all tokens at one place, as the only thing that a prediction may use.

    Attributes:
        feature: what it is; for a place its ``term`` is empty.
        values: ``[n]`` float64.
        told: the share of samples whose class it tells, each judged by the others.
        one_to_one: whether it has one value per class, and each value stands for one class.
        apart: for a feature of many values: the least distance between the means of two classes, in standard
            deviations within a class.
    """

    feature: Feature
    values: Array = field(repr=False)
    told: float
    one_to_one: bool
    apart: float | None = None


def single_features(model: CheapModel) -> list[SingleFeature]:
    """Every plain number, token, word, pair, category and place of the training samples, the most telling first."""
    found = [
        SingleFeature(feature, values, *_judge(values, model.train.codes, len(model.classes)))
        for feature, values in _columns(model)
    ]
    return sorted(found, key=lambda one: -one.told)


def _columns(model: CheapModel) -> list[tuple[Feature, Array]]:
    features = model.train.features
    found = []
    places: dict[tuple[str, int], Array] = {}
    for number, column in enumerate(features.columns):
        values = features.raw[:, number].astype(np.float64)
        if column.kind == "place":
            key = (column.path, column.place or 0)
            places[key] = places.get(key, 0) + values * (1 + number)
        elif column.kind in ("number", "category", "token", "pair") and values.min() < values.max():
            found.append((column, values))
    found += [
        (Feature(path, "place", place=place), values)
        for (path, place), values in places.items()
        if values.min() < values.max()
    ]
    return found


def _judge(values: Array, codes: Array, count: int) -> tuple[float, bool, float | None]:
    """:attr:`SingleFeature.told`, :attr:`SingleFeature.one_to_one` and :attr:`SingleFeature.apart`."""
    _, groups = np.unique(values, return_inverse=True)
    kinds = int(groups.max()) + 1
    if kinds > _MANY_VALUES:
        return _neighbours_agree(values, codes), False, _apart(values, codes, count)
    table = np.zeros((kinds, count))
    np.add.at(table, (groups, codes), 1)
    sizes, most = table.sum(1), table.max(1)
    told = float((most * (sizes >= _FEWEST_PER_VALUE)).sum() / len(codes))
    pure = bool((most == sizes).all())
    return told, pure and kinds == count and len(set(table.argmax(1).tolist())) == count, None


def _apart(values: Array, codes: Array, count: int) -> float:
    hot = one_hot(codes, count)
    means = values @ hot / np.maximum(hot.sum(0), 1)
    within = float(np.sqrt(((values - means[codes]) ** 2).mean()))
    return float(np.diff(np.sort(means)).min()) / max(within, 1e-300)


def _neighbours_agree(values: Array, codes: Array) -> float:
    """How often the samples with the next smaller and the next larger value are of the same class."""
    ordered = codes[np.argsort(values, kind="stable")]
    return float((ordered[1:] == ordered[:-1]).mean())


def without_telling(model: CheapModel, ranked: Sequence[SingleFeature], told: float) -> Array | None:
    """What a linear model says about the training samples that sees none of the most telling features.

    Args:
        model: the model of the data.
        ranked: its single features.
        told: from what share of told labels on a feature is left out, with all features of the same tokens.

    Returns:
        ``[n, k]`` probabilities from cross-validation; ``None`` where no feature is left.
    """
    train = model.train
    out = [one.feature for one in ranked if one.told >= told]
    plain = {(one.path, one.index) for one in out if one.kind == "number"}
    places = {(one.path, one.place) for one in out if one.kind == "place"}
    terms = {(one.path, term) for one in out for term in one.term}
    terms |= _terms_of_classes(model)
    kept = [
        (column.path, column.index if column.kind == "number" else None) not in plain
        and (column.path, column.place) not in places
        and not any((column.path, term) in terms for term in column.term)
        for column in train.features.columns
    ]
    matrix = train.features.matrix[:, kept]
    if not matrix.shape[1] or not float(np.ptp(matrix, axis=0).max()):
        return None
    return CrossValidation(matrix).probabilities(train.codes, len(model.classes))


def _terms_of_classes(model: CheapModel) -> set[tuple[str, int | str]]:
    """Tokens that stand for one class each, of several: present in nearly all of its samples and in no others."""
    train = model.train
    hot = _standardised(one_hot(train.codes, len(model.classes)))
    alike = np.abs(_standardised(train.features.raw.astype(np.float64)).T @ hot).max(1) / len(hot)
    return {
        (column.path, term)
        for column, same in zip(train.features.columns, alike.tolist(), strict=True)
        if same > _SAME and column.kind in ("token", "place", "category")
        for term in column.term
    }


def _standardised(values: Array) -> Array:
    std = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(std > 0, std, 1) * (std > 0))
