"""Single features that give the label away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from debugkit import Finding, fail, warn
from debugkit.data.ridge import CrossValidation
from debugkit.data.shares import lower_bound, percent
from debugkit.data.single_features import SingleFeature, single_features, without_telling
from debugkit.probes.cheap_model import CheapModel, skill

Array = np.ndarray[Any, Any]

_MANY = 100
_Z = 2.33
_INFORMATIVE = 3.0
_FAR = 0.5
_APART = 20.0
_PLENTY = 300
_TIMES = 10
_LEAST = 0.01
_SAME = 0.995
_ALIKE = 0.7
_DROP = "leave it out of the inputs: it comes from the label, and is not there when the model is used"


def telling(model: CheapModel, min_told: float) -> Iterator[Finding]:
    """One feature that tells nearly all labels, where the others tell some."""
    n = len(model.train.answers)
    if n < _MANY:
        return
    ranked = single_features(model)
    if not ranked:
        return
    best = ranked[0]
    if best.told < min_told or lower_bound(best.told, n, _Z) < min_told - 0.03:
        return
    rest = rest_tells(model, ranked, min_told)
    if rest is None or (not best.one_to_one and not _stands_out(model, ranked, rest)):
        return
    make = fail if best.one_to_one and best.feature.kind == "number" else warn
    what = "is the label under other numbers" if make is fail else "gives the label away"
    yield make(
        f"{shown(best)} {what}: alone it tells {percent(best.told, both_ends=True)} of {n:,} labels, all other "
        f"features together {percent(rest)}",
        where=model.train.rows.name(int(model.train.answers.samples[0]), best.feature.path),
        hint=_DROP,
        told=best.told,
        others=rest,
        majority=model.majority,
    )


def rest_tells(model: CheapModel, ranked: list[SingleFeature], told: float) -> float | None:
    """What the other features tell, where that is clearly more than nothing."""
    rest = without_telling(model, ranked, told)
    if rest is None or skill(rest, model.train.codes) < _INFORMATIVE:
        return None
    return float((rest.argmax(1) == model.train.codes).mean())


def _stands_out(model: CheapModel, ranked: list[SingleFeature], rest: float) -> bool:
    """Whether a feature tells far more than any other one, and than all others together."""
    best = ranked[0]
    others = [one for one in ranked[1:] if not _goes_along(one, best, model.train.codes)]
    if best.apart is not None and best.apart > _APART:
        return best.apart > 4 * max((one.apart or 0 for one in others), default=0)
    second = max((one.told for one in others), default=model.majority)
    alone = second - model.majority < _FAR * (best.told - model.majority)
    if best.apart is not None:
        return alone and len(best.values) >= _PLENTY and 1 - rest > _TIMES * max(1 - best.told, _LEAST)
    return alone and 1 - rest > 3 * (1 - best.told) and 1 - rest > 0.01


def _goes_along(one: SingleFeature, other: SingleFeature, codes: Array) -> bool:
    """Whether two features are nearly the same, inside the classes too, or are made of the same tokens."""
    if one.feature.path == other.feature.path and one.told > 0.95 and one.feature.kind != "number":
        return True
    if abs(float(np.corrcoef(one.values, other.values)[0, 1])) > _SAME:
        return True
    inner = [_within(each.values, codes) for each in (one, other)]
    spread = [float(values.std()) for values in inner]
    return min(spread) > 0 and abs(float((inner[0] * inner[1]).mean())) > _ALIKE * spread[0] * spread[1]


def _within(values: Array, codes: Array) -> Array:
    """Values minus the mean of their class."""
    sizes = np.maximum(np.bincount(codes), 1)
    return np.asarray(values - (np.bincount(codes, weights=values) / sizes)[codes])


def shown(one: SingleFeature) -> str:
    feature = one.feature
    if feature.kind != "place":
        return str(feature)
    end = "from the end " if (feature.place or 0) < 0 else ""
    return f"the token at position {abs(feature.place or 0)} {end}of `{feature.path}`"


def rescaled(model: CheapModel) -> Iterator[Finding]:
    """A column that orders continuous targets exactly, where other columns tell something too."""
    train = model.train
    order = np.argsort(train.answers.values, kind="stable")
    targets = train.answers.values[order]
    if len(targets) < _MANY or len(np.unique(targets)) < len(targets) / 2:
        return
    rises = np.diff(targets) > 1e-6 * float(np.ptp(targets))
    columns = [i for i, column in enumerate(train.features.columns) if column.kind == "number"]
    for number in columns:
        steps = np.diff(train.features.raw[order, number].astype(np.float64))[rises]
        if not len(steps) or not ((steps >= 0).all() or (steps <= 0).all()) or not (steps != 0).mean() > 0.9:
            continue
        explained = _explained_without(model, number)
        if explained is None or explained < 0.1:
            continue
        yield fail(
            f"{train.features.columns[number]} puts {len(targets):,} samples in exactly the order of their targets: it "
            f"is the target on another scale; the other features tell {percent(explained)} of its variance",
            where=train.rows.name(int(train.answers.samples[0]), train.features.columns[number].path),
            hint=_DROP,
            others=explained,
        )
        return


def _explained_without(model: CheapModel, number: int) -> float | None:
    train = model.train
    raw = train.features.raw.astype(np.float64)
    std = raw.std(0)
    alike = np.abs(
        ((raw - raw.mean(0)) / np.where(std > 0, std, 1)).T
        @ ((raw[:, number] - raw[:, number].mean()) / std[number])
    ) / len(raw)
    kept = (alike < 0.999) & (std > 0)
    if not kept.any():
        return None
    predicted = CrossValidation(train.features.matrix[:, kept]).values(train.answers.values)
    return float(1 - ((predicted - train.answers.values) ** 2).mean() / train.answers.values.var())
