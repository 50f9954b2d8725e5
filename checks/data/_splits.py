"""Whether the evaluation split went through the same preparation as the training split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from debugkit.data.rows import Column, Rows

from ._pixels import levels_of
from ._units import Units, is_image, thinned, units_of

_FEWEST_SAMPLES = 16
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MOST_READ = 2**16
_DECIMALS = 3
_EACH = 1e-3
_JOINT = 0.1


@dataclass(frozen=True)
class Contradiction:
    """Two splits whose values can't come from the same preparation.

    Attributes:
        column: of the training split.
        said: what contradicts, as a clause.
        whole: whether it holds for the input as a whole, and not for single columns only.
        measured: the numbers.
    """

    column: Column
    said: str
    whole: bool
    measured: dict[str, float]


def contradictions(train: Rows, other: Rows, sigmas: float) -> Iterator[Contradiction]:
    """Inputs that both splits have under the same path, and that were prepared differently.

    Args:
        train: training samples.
        other: evaluation samples.
        sigmas: standard deviations by which the means, or the factor by which the spreads, of the same preparation
            never differ.
    """
    for column in train.inputs:
        twin = other.columns.get(column.path)
        if twin is None or not (column.is_floating or twin.is_floating):
            continue
        one, two = units_of(column), units_of(twin)
        if one is None or two is None or one.kind != two.kind or len(one) != len(two):
            continue
        if min(one.samples, two.samples) < _FEWEST_SAMPLES:
            continue
        if train.complete and other.complete and (said := _apart_each(column, twin, one, two)):
            yield Contradiction(column, said, False, {})
            continue
        image = is_image(column.shapes.most_common(1)[0][0])
        if found := _judge(column, one, two, sigmas, image):
            yield found


def _judge(column: Column, one: Units, two: Units, sigmas: float, image: bool) -> Contradiction | None:
    continuous = (one.distinct >= 16) & (two.distinct >= 16)
    if not bool(continuous.any()):
        return None
    narrow = torch.minimum(one.std, two.std)
    shift = (one.mean - two.mean).abs() / narrow
    factor = torch.maximum(one.std, two.std) / narrow
    gross = (
        continuous & ((shift > sigmas) | (factor > sigmas)) & _apart(one, two, sigmas) & ~_goes_on(one, two)
    )
    worst = int(torch.where(continuous, torch.maximum(shift, factor), -1.0).argmax())
    measured = {"shift": float(shift[worst]), "factor": float(factor[worst])}
    if 2 * int(gross.sum()) >= int(continuous.sum()):
        return Contradiction(column, _said(one, two, worst), True, measured)
    if image and _affine_images(one, two, continuous):
        what = f"{_said(one, two, worst)}, the same distribution but for a shift and a factor"
        return Contradiction(column, what, True, measured)
    if image and (plain := _left_out(one, two)):
        what = (
            f"{_said(one, two, worst)}: {plain} holds pixels in [0, 1] as they are, the other split does not"
        )
        return Contradiction(column, what, False, measured)
    if one.kind == "column" and (raw := _unprepared(one, two, continuous)):
        what = f"{_said(one, two, worst)}: {raw} holds round numbers, the other split does not"
        return Contradiction(column, what, True, measured)
    if bool(gross.any()):
        worst = int(torch.where(gross, torch.maximum(shift, factor), -1.0).argmax())
        measured = {"shift": float(shift[worst]), "factor": float(factor[worst])}
        return Contradiction(column, _said(one, two, worst), False, measured)
    return None


def _apart_each(column: Column, twin: Column, one: Units, two: Units) -> str | None:
    """Splits that have mean 0 and standard deviation 1 each, to rounding: that takes statistics of their own."""
    if column.reduced or twin.reduced or one.samples < len(column.values) or two.samples < len(twin.values):
        return None
    if not bool((np.abs(column.mean) >= _EACH).any()):  # every sample by itself
        return None
    exact = [_is_standard(units) for units in (one, two)]
    same = one.values.shape == two.values.shape and torch.equal(
        one.values.sort().values, two.values.sort().values
    )
    if not all(exact) or same or (one.kind == "column" and len(one) < 2):
        return None
    return "both have mean 0 and standard deviation 1 exactly, so each was standardised with statistics of its own"


def _is_standard(units: Units) -> bool:
    count = units.values.shape[1]
    std = torch.minimum((units.std - 1).abs(), (units.std * (count / (count - 1)) ** 0.5 - 1).abs())
    return bool((units.mean.abs() < 1e-5).all()) and bool((std < 1e-5).all())


def _said(one: Units, two: Units, unit: int) -> str:
    name = "" if one.kind == "value" else f"{one.name(unit)} "
    return (
        f"{name}has mean {one.mean[unit]:.3g} and standard deviation {one.std[unit]:.3g} in training, "
        f"{two.mean[unit]:.3g} and {two.std[unit]:.3g} in evaluation"
    )


def _apart(one: Units, two: Units, sigmas: float) -> torch.Tensor:
    """``[units]``: whether the middle 90 % of the values differ as much, so that no outlier makes the difference."""
    (low, high), (low2, high2) = (_quantiles(units, (0.05, 0.95)).T for units in (one, two))
    width, width2 = high - low, high2 - low2
    narrow, wide = torch.minimum(width, width2), torch.maximum(width, width2)
    gap = torch.maximum(low - high2, low2 - high)
    return (wide > sigmas * narrow) | (gap > sigmas / 4 * narrow)


def _goes_on(one: Units, two: Units) -> torch.Tensor:
    """``[units]``: whether one split begins where the other ends, as time and running numbers do."""
    gap = torch.maximum(one.minimum - two.maximum, two.minimum - one.maximum)
    wide = torch.maximum(one.maximum - one.minimum, two.maximum - two.minimum)
    return (gap > -_JOINT * wide) & (gap < _JOINT * wide)


def _affine_images(one: Units, two: Units, continuous: torch.Tensor) -> bool:
    """Whether one split holds images in [0, 1] or 0..255 and the other the same with mean and spread changed.

    A normalised image goes below 0, which no brightness or contrast does. Where both splits have pixel levels, their
    distances decide exactly.
    """
    if not bool(continuous.all()):
        return False
    for plain, prepared in ((one, two), (two, one)):
        if not (float(plain.minimum.min()) >= 0 and float(plain.maximum.max()) <= 255.5):
            continue
        span = plain.maximum - plain.minimum
        if not bool((prepared.minimum < plain.minimum - 0.25 * prepared.std).all()) or float(span.min()) <= 0:
            continue
        here, there = _quantiles(plain, _QUANTILES), _quantiles(prepared, _QUANTILES)
        slope = prepared.std / plain.std
        line = prepared.mean[:, None] + slope[:, None] * (here - plain.mean[:, None])
        residual = (line - there).square().mean(1).sqrt() / prepared.std
        exact = _levels_differ(plain, prepared)
        if bool(((slope > 1.5) | (slope < 1 / 1.5)).all()) and (exact or bool((residual < 0.2).all())):
            return True
    return False


def _left_out(one: Units, two: Units) -> str | None:
    """The split that holds images in exactly [0, 1] where many values of the other are far outside."""
    for name, plain, other in (("training", one, two), ("evaluation", two, one)):
        inside = bool((plain.minimum >= 0).all() and (plain.maximum <= 1).all())
        full = bool((plain.maximum - plain.minimum > 0.9).all())
        values = thinned(other.values, _MOST_READ)
        far = ((values < -0.5) | (values > 1.5)).double().mean(1)
        if inside and full and bool((far > 0.2).all()):
            return name
    return None


def _levels_differ(one: Units, two: Units) -> bool:
    levels, others = levels_of(one), levels_of(two)
    if levels is None or others is None:
        return False
    return bool(((others.step / levels.step - 1).abs() > 0.3).all())


def _unprepared(one: Units, two: Units, continuous: torch.Tensor) -> str | None:
    """The split that holds numbers as they were written down where the other holds computed ones."""
    rows = [unit for unit in range(len(one)) if bool(continuous[unit])]
    raw = [(_is_round(one.values[unit]), _is_round(two.values[unit])) for unit in rows]
    ratio = (one.std / two.std).log().abs()[continuous]
    shift = ((one.mean - two.mean).abs() / torch.maximum(one.std, two.std))[continuous]
    differ = float(ratio.median()) > 0.4 or float(shift.median()) > 0.5
    if not differ or len(rows) < 2:
        return None
    if all(here and not there for here, there in raw):
        return "training"
    return "evaluation" if all(there and not here for here, there in raw) else None


def _is_round(values: torch.Tensor) -> bool:
    values = values[values.isfinite()][:_MOST_READ] * 10**_DECIMALS
    return bool(len(values)) and bool(((values - values.round()).abs() < 1e-3 + 1e-6 * values.abs()).all())


def _quantiles(units: Units, at: tuple[float, ...]) -> torch.Tensor:
    """``[units, quantiles]``, of at most 2^16 values each."""
    wanted = torch.tensor(at, dtype=torch.float64)
    rows = [row[row.isfinite()] for row in thinned(units.values, _MOST_READ)]
    return torch.stack(
        [row.quantile(wanted) if len(row) else torch.full_like(wanted, float("nan")) for row in rows]
    )
