"""How much neighbouring values have in common, and whether another arrangement of them has more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

_FEWEST_VALUES = 512
_HIGH = 0.85
_RUNS_ON = 0.35
_PLANES = 0.3
_SAME_PLANES = 0.95
_REPEATED = 0.1
_SHEAR_MARGIN, _SHEAR_FLOOR = 0.3, 0.7


@dataclass(frozen=True)
class Arrangement:
    """A reading of an input's memory in which neighbours fit together.

    Attributes:
        description: how the values lie in memory.
        before: the smallest correlation of neighbours along a side, as the input is.
        after: the same in this arrangement.
    """

    description: str
    before: float
    after: float


def smoothness(values: torch.Tensor) -> list[float]:
    """The correlation of neighbours along each side of ``[rows, channels, *sides]``; 0 where nothing varies."""
    return [neighbours(values, dim) for dim in range(2, values.ndim)]


def neighbours(values: torch.Tensor, dim: int) -> float:
    """The correlation of values that are next to each other along a dimension, around the mean of their row."""
    centred = values - values.flatten(1).mean(1).reshape(-1, *[1] * (values.ndim - 1))
    return _lagged(centred, dim)


def neighbours_across_samples(values: torch.Tensor, dim: int) -> float:
    """The correlation of neighbours along a dimension, around the mean of each position over the rows."""
    return _lagged(values - values.mean(0, keepdim=True), dim)


def unscrambled(values: torch.Tensor, margin: float, floor: float) -> Arrangement | None:
    """The arrangement in which neighbours correlate far better than they do as they are.

    Images are read back as if ``view`` or ``reshape`` had been used where dimensions should have been permuted. In
    noise and in anything that is smooth already, no arrangement is better.

    Args:
        values: ``[rows, channels, *sides]``.
        margin: by how much the correlation has to rise.
        floor: what it has to reach.
    """
    if values.numel() < _FEWEST_VALUES or not bool(values.isfinite().all()):
        return None
    before = min(smoothness(values))
    best: Arrangement | None = None
    for reading in _readings(values):
        after = min(smoothness(reading.values))
        limits = (_SHEAR_MARGIN, _SHEAR_FLOOR) if reading.sheared else (margin, floor)
        if best is not None and after <= best.after:
            continue
        if _is_better(before, after, *limits) and reading.shows(values, after):
            best = Arrangement(reading.description, before, after)
    return best


def _is_better(before: float, after: float, margin: float, floor: float) -> bool:
    """Whether neighbours correlate far better, or what is missing to 1 has shrunk to less than half."""
    shrunk = after > _HIGH and 1 - before > 2 * (1 - after)
    return after > floor and (after - before > margin or shrunk)


def _runs_on(values: torch.Tensor, lag: int) -> float:
    """The correlation of a line's last values with the next line's first ones.

    It is as high as inside a line where lines are no lines. Separate series and the rows of a picture begin anew.
    """
    centred = values - values.flatten(1).mean(1).reshape(-1, *[1] * (values.ndim - 1))
    ends, starts = centred[..., -lag:], centred[..., :lag]
    dim = values.ndim - 2
    return _correlation(ends.narrow(dim, 0, ends.shape[dim] - 1), starts.narrow(dim, 1, ends.shape[dim] - 1))


def _between_planes(values: torch.Tensor) -> float:
    if values.shape[1] < 2:
        return 0.0
    planes = values.flatten(2)
    planes = planes - planes.mean(2, keepdim=True)
    return _lagged(planes, 1)


def same_order(one: torch.Tensor, other: torch.Tensor, channels: int | None = None) -> float:
    """The correlation of two tensors' values in the order of their memory, row by row (mean over the rows).

    Args:
        one: ``[rows, ...]``.
        other: as many values.
        channels: a dimension of ``one`` whose places may each have been shifted and scaled.
    """
    other = other.reshape(one.shape)
    if channels is not None:
        dims = [dim for dim in range(one.ndim) if dim != channels]
        one, other = (
            (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True).clamp(min=1e-12)
            for x in (one, other)
        )
    one, other = one.flatten(1).double(), other.flatten(1).double()
    one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    size = (one.square().sum(1) * other.square().sum(1)).sqrt()
    known = size > 0
    return float(((one * other).sum(1)[known] / size[known]).mean()) if bool(known.any()) else 0.0


@dataclass(frozen=True)
class _Reading:
    """Another arrangement of the same memory.

    Attributes:
        description: how the values lie in memory.
        values: ``[rows, channels, *sides]``.
        shows: whether the values, as they are, have the trace that this mistake leaves, given the correlation of
            neighbours in the arrangement.
        sheared: whether the lines are only cut at other places.
    """

    description: str
    values: torch.Tensor
    shows: Callable[[torch.Tensor, float], bool]
    sheared: bool = False


def _readings(values: torch.Tensor) -> Iterator[_Reading]:
    rows, channels, *sides = values.shape
    if channels > 1:
        last = values.reshape(rows, *sides, channels).movedim(-1, 1)

        def dealt_out(given: torch.Tensor, after: float) -> bool:
            here = _between_planes(given)
            fitting = here > _SAME_PLANES or here > _between_planes(last) + _PLANES
            return not fitting and _runs_on(given, channels) > _RUNS_ON * after

        yield _Reading("channels last", last, dealt_out)
    if channels > 1 and len(sides) > 1:
        moved = values.movedim(1, -1).reshape(rows, channels, *sides)
        yield _Reading("channels first, after it was taken for channels last", moved, _repeats)
    if len(sides) == 2 and sides[0] != sides[1]:
        swapped = values.reshape(rows, channels, sides[1], sides[0]).transpose(2, 3)
        yield _Reading(
            "width before height", swapped, lambda given, after: _runs_on(given, 1) > _RUNS_ON * after, True
        )


def _repeats(values: torch.Tensor, after: float) -> bool:
    """Whether each line holds as many similar parts as there are channels: lines of a picture, thinned out."""
    channels, width = values.shape[1], values.shape[-1]
    centred = values - values.flatten(1).mean(1).reshape(-1, *[1] * (values.ndim - 1))
    whole, half = round(width / channels), round(width / channels / 2)
    if half < 1 or whole >= width:
        return False
    return _lagged(centred, values.ndim - 1, whole) > _lagged(centred, values.ndim - 1, half) + _REPEATED


def _lagged(values: torch.Tensor, dim: int, lag: int = 1) -> float:
    count = values.shape[dim] - lag
    return _correlation(values.narrow(dim, 0, count), values.narrow(dim, lag, count)) if count > 0 else 0.0


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    size = (one.double().square().sum() * other.double().square().sum()).sqrt()
    return float((one.double() * other.double()).sum() / size) if float(size) > 0 else 0.0
