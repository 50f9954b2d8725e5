"""What is wrong with the scale of an input, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from debugkit.data.rows import Column

from ._pixels import levels_of, normalised_twice, scaled_twice
from ._units import Units, is_image, thinned

_PIXEL_VALUES = 64
_FEWEST_SAMPLES = 8
_ENOUGH = 32
_TINY_IMAGE = 0.02
_TINY = 1e-4
_FLAT = 0.02
_RAW = "holds raw pixels"
_FLAT_OFFSET = 10
_SMALLEST_OFFSET = 3


@dataclass(frozen=True)
class Limits:
    """The thresholds of the check, as its options give them."""

    std: float
    ratio: float
    offset: float


@dataclass(frozen=True)
class Problem:
    """A scale that layers can't work with.

    Attributes:
        said: what was seen; goes on from the name of the input.
        consequence: what follows.
        hint: the next action.
        measured: the numbers.
    """

    said: str
    consequence: str
    hint: str
    measured: dict[str, float] = field(default_factory=dict)


def problem_of(column: Column, units: Units, limits: Limits) -> Problem | None:
    """The most telling thing that is wrong with an input's scale; ``None`` where it is fine."""
    if units.samples < 2 or not bool((units.maximum > units.minimum).any()):
        return None
    shape = column.shapes.most_common(1)[0][0]
    image = is_image(shape)
    pixels = image or units.values.numel() >= _PIXEL_VALUES * units.samples
    if pixels and (found := _of_pixels(units, image)):
        return found
    return (
        _far_off(units, limits, image)
        or _apart(units, limits)
        or _large(units, limits)
        or _tiny(units, image)
    )


def problem_inside(units: Units) -> Problem | None:
    """What is wrong with images as a model prepares them itself; ``None`` where they are fine.

    A model may be made for pixels in 0..255, so these are no problem.
    """
    if not bool((units.maximum > units.minimum).any()):
        return None
    found = _of_pixels(units, image=True)
    if found is not None and found.said.startswith(_RAW):
        return None
    return found or _flat_offset(units) or _tiny(units, image=True)


def constant_units(units: Units) -> str | None:
    """The columns or channels that hold one value throughout, where that is no trait of the encoding.

    Beside sparse or binary columns a constant is a category or a word that is rare, a plane of a board or the border
    of an image; ones are a bias or a mask.
    """
    if units.kind == "value" or units.samples < _ENOUGH:
        return None
    constant, varied = units.constant(), units.dense
    if 5 * int(varied.sum()) < 4 * int((~constant).sum()) or not bool(varied.any()):
        return None
    constant = constant & (units.minimum != 1)
    found = constant.nonzero().flatten().tolist()
    if not found:
        return None
    value = f"{float(units.minimum[found[0]]):.4g}"
    return f"{units.name(found[0])} constant at {value}" if len(found) == 1 else _several(units, found)


def _several(units: Units, found: list[int]) -> str:
    shown = ", ".join(map(str, found[:4])) + (", ..." if len(found) > 4 else "")
    return f"{len(found)} of {len(units)} {units.kind}s constant ({shown})"


def _of_pixels(units: Units, image: bool) -> Problem | None:
    low, high = float(units.minimum.min()), float(units.maximum.max())
    mean, std = float(units.mean.mean()), float(units.std.mean())
    measured = {"minimum": low, "maximum": high, "mean": mean, "std": std}
    levels = levels_of(units) if image or float(units.values[:, :4096].abs().max()) > 1 else None
    if levels is not None and low < 0 and float(levels.step.min()) > 1.5 and high > 127:
        return Problem(
            f"holds 8-bit pixels normalised with statistics for [0, 1] (neighbouring levels are {levels.step[0]:.3g} "
            f"apart, values go from {low:.3g} to {high:.4g})",
            "it is 255 times too large",
            "divide by 255 before `Normalize` (`ToTensor()` does so for uint8 images only)",
            measured,
        )
    if high > 127 and low >= -0.05 * high and high <= 512 and std > 20 and _bright(units, image):
        return Problem(
            f"{_RAW} ({low:.3g} to {high:.4g}, mean {mean:.3g}, std {std:.3g})",
            "first activations and gradients are hundreds of times too large",
            "divide by 255 and normalise (`ToTensor()` with `Normalize(mean, std)`, or `do_rescale=True` and "
            "`do_normalize=True` in an image processor)",
            measured,
        )
    if scaled_twice(units) and (image or units.samples >= _FEWEST_SAMPLES):
        return Problem(
            f"was divided by 255 twice (no value is above {high:.3g}, which is 1 / 255)",
            "images are black to it and gradients vanish",
            "scale once: `ToTensor()` has divided by 255 already (`do_rescale=False` in an image processor)",
            measured,
        )
    if (image or levels is not None) and normalised_twice(units):
        return Problem(
            f"was normalised twice (values from {low:.3g} to {high:.3g}, mean {mean:.3g}, std {std:.3g})",
            "it is far from what the statistics were meant to give, mean 0 and standard deviation 1",
            "apply `Normalize` once: either in the dataset's transform, or in the image processor "
            "(`do_normalize=False`), or in the model",
            measured,
        )
    return None


def _bright(units: Units, image: bool) -> bool:
    """Whether bright values are common, as they are in pixels and are not in counts."""
    values = thinned(units.values, 4096)
    if not image and not bool((values == values.round()).all()):
        return False
    return float((values >= 100).double().mean()) > 0.02


def _far_off(units: Units, limits: Limits, image: bool) -> Problem | None:
    if image and (flat := _flat_offset(units)):
        return flat
    offset = _offsets(units)
    far = (offset > limits.offset) & (units.mean.abs() > _SMALLEST_OFFSET * limits.offset)
    if not bool(far.any()):
        return None
    worst = int(torch.where(far, offset, -1.0).argmax())
    return Problem(
        f"is far off 0: {_where_off(units, worst)}{_and_more(int(far.sum()) - 1)}",
        "what differs between samples is lost in the offset",
        "subtract the mean and divide by the standard deviation of the training split (`StandardScaler`)",
        {"mean": float(units.mean[worst]), "std": float(units.std[worst])},
    )


def _flat_offset(units: Units) -> Problem | None:
    """Images that were normalised after they had been scaled to next to nothing."""
    offset = _offsets(units)
    if not bool(((offset > _FLAT_OFFSET) & (units.std < _FLAT)).all()):
        return None
    return Problem(
        f"is nearly flat: {_where_off(units, 0)}{_and_more(len(units) - 1)}",
        "all images look the same to it",
        "look for a scaling that was applied twice before the normalisation (`do_rescale=False` in an image processor "
        "that gets values in [0, 1])",
        {"mean": float(units.mean[0]), "std": float(units.std[0])},
    )


def _offsets(units: Units) -> torch.Tensor:
    return torch.where(units.constant(), 0.0, units.mean.abs() / units.std)


def _where_off(units: Units, unit: int) -> str:
    verb = "have" if units.kind == "value" else "has"
    return (
        f"{units.name(unit)} {verb} mean {units.mean[unit]:.4g} and standard deviation {units.std[unit]:.3g}"
    )


def _and_more(count: int) -> str:
    return f", and {count} more like it" if count > 0 else ""


def _apart(units: Units, limits: Limits) -> Problem | None:
    dense = units.dense
    if units.kind != "column" or int(dense.sum()) < 2:
        return None
    wide = int(torch.where(dense, units.std, -1.0).argmax())
    narrow = int(torch.where(dense, units.std, float("inf")).argmin())
    top, bottom = float(units.std[wide]), float(units.std[narrow])
    if not (top > limits.ratio * bottom and top > 10):
        return None
    return Problem(
        f"has columns {top / bottom:,.0f} times apart ({units.name(wide)}: standard deviation {top:.3g}, "
        f"{units.name(narrow)}: {bottom:.2g})",
        "the largest columns drown the others",
        _STANDARDISE,
        {"largest_std": top, "smallest_std": bottom},
    )


def _large(units: Units, limits: Limits) -> Problem | None:
    worst = int(units.std.argmax())
    std = float(units.std[worst])
    if not std > limits.std:
        return None
    low, high = float(units.minimum[worst]), float(units.maximum[worst])
    name = "has values" if units.kind == "value" else f"has {units.name(worst)}"
    return Problem(
        f"{name} from {low:.4g} to {high:.4g} (standard deviation {std:.3g})",
        "first activations and gradients are hundreds of times too large",
        _STANDARDISE,
        {"minimum": low, "maximum": high, "std": std},
    )


def _tiny(units: Units, image: bool) -> Problem | None:
    largest = max(abs(float(units.minimum.min())), abs(float(units.maximum.max())))
    std = float(units.std.max())
    if not ((image and largest < _TINY_IMAGE) or (std < _TINY and largest < 10 * _TINY)):
        return None
    return Problem(
        f"is tiny: no value is above {largest:.2g} in size (standard deviation {std:.2g})",
        "first activations and gradients vanish",
        "look for a scaling that was applied twice, or standardise",
        {"largest": largest, "std": std},
    )


_STANDARDISE = (
    "standardise each column by the training split's mean and standard deviation (`StandardScaler`), or begin the "
    "model with a `BatchNorm`"
)
