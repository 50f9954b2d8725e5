"""Pixels behind an input: 8-bit levels, and what was done to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._units import Units, thinned

_KNOWN: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "0.5": ((0.5,), (0.5,)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.286,), (0.353,)),
}
_LEVELS = 256
_FEWEST_LEVELS = 32
_MOST_READ = 2**18


@dataclass(frozen=True)
class Levels:
    """Pixel levels 0..255 that went through ``value = step * level + start``, per channel.

    Attributes:
        step: ``[channels]`` distance of neighbouring levels.
        start: ``[channels]`` the smallest value.
    """

    step: torch.Tensor
    start: torch.Tensor


def levels_of(units: Units) -> Levels | None:
    """The grid that every channel's values lie on; ``None`` where one has no grid of at most 256 levels."""
    steps = [_step(row[row.isfinite()]) for row in units.values]
    if not steps or any(step is None for step in steps):
        return None
    return Levels(torch.tensor([step for step in steps if step], dtype=torch.float64), units.minimum)


def original_scale(units: Units) -> tuple[torch.Tensor, torch.Tensor] | None:
    """``(step, offset)`` per channel so that ``value / step + offset`` compares between channels again.

    Where one scale was used for all of them there is no offset; published statistics are known by their steps.
    """
    levels = levels_of(units)
    if levels is None:
        plain = float(units.minimum.min()) >= 0
        return (torch.ones(len(units)), torch.zeros(len(units))) if plain else None
    if float(levels.step.max() / levels.step.min()) < 1.005:
        return levels.step, torch.zeros(len(units))
    for means, stds in _KNOWN.values():
        given = 1 / (255 * torch.tensor(stds, dtype=torch.float64))
        if len(stds) == len(units) and bool(((levels.step / given - 1).abs() < 0.005).all()):
            return levels.step, 255 * torch.tensor(means, dtype=torch.float64)
    return None


def normalised_twice(units: Units) -> bool:
    """Whether the mean was subtracted and the standard deviation divided by two times over.

    Seen by pixel levels that come out with mean 0 and standard deviation 1 when one of two equal steps is undone,
    or by published statistics whose application to 0 and 1, twice, gives exactly the smallest and largest values.
    """
    return _twice_by_levels(units) or any(_twice_by_known(units, *known) for known in _KNOWN.values())


def scaled_twice(units: Units) -> bool:
    """Whether pixels were divided by 255 two times over: the brightest is 1 / 255, or levels are 1 / 255^2 apart."""
    low, high = float(units.minimum.min()), float(units.maximum.max())
    if low < 0 or not 0 < high * 255 < 1.002:
        return False
    if high * 255 > 0.998:
        return True
    levels = levels_of(units)
    return levels is not None and bool(((levels.step * 255**2 - 1).abs() < 0.02).all())


def _twice_by_levels(units: Units) -> bool:
    if float(units.std.median()) < 2 or (levels := levels_of(units)) is None:
        return False
    std = (1 / (255 * levels.step)).sqrt()
    mean = -levels.start / (1 / std.square() + 1 / std)
    once_mean, once_std = units.mean * std + mean, units.std * std
    plausible = (mean > 0) & (mean < 1) & (std < 0.6)
    return bool((plausible & (once_mean.abs() < 0.6) & (once_std > 0.5) & (once_std < 1.7)).all())


def _twice_by_known(units: Units, means: tuple[float, ...], stds: tuple[float, ...]) -> bool:
    if len(means) > 1 and len(units) != len(means):
        return False
    colour = len(means) > 1
    mean, std = torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)
    low, high = ((0 - mean) / std - mean) / std, ((1 - mean) / std - mean) / std
    tolerance = 2e-3 * (high - low)
    exact = ((units.minimum - low).abs() < tolerance) & ((units.maximum - high).abs() < tolerance)
    inside = (units.minimum > low - tolerance) & (units.maximum < high + tolerance)
    wide = (units.maximum - units.minimum > 0.6 * (high - low)) & (units.std > 2.5)
    fits = exact | (inside & wide) if colour else exact
    return bool(fits.all()) and int(units.distinct.min()) >= _FEWEST_LEVELS


def _step(values: torch.Tensor) -> float | None:
    found = torch.unique(thinned(values, _MOST_READ).float()).double()
    if not _FEWEST_LEVELS <= len(found) <= _LEVELS:
        return None
    size = float(found.abs().max())
    gaps = found.diff()
    gaps = gaps[gaps > 1e-6 * size]
    if not len(gaps):
        return None
    rough = float(gaps.min())
    levels = ((found - found[0]) / rough).round()
    step = float((found - found[0])[-1] / levels[-1])
    apart = ((found - found[0]) / step - levels).abs().max()
    return step if float(apart) < 0.05 and float(levels[-1]) < _LEVELS else None
