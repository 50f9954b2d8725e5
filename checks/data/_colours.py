"""Colours that are in another order in the evaluation split than in the training split."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from debugkit.data.rows import Column, Rows

from ._pixels import original_scale
from ._units import channel_axis, units_of

_FEWEST_SAMPLES = 32
_ERRORS = 4.0
_ALIKE = 0.3


def reversed_colours(train: Rows, other: Rows) -> Iterator[tuple[str, str]]:
    """Images whose first and last channel have changed places between the splits, with what shows it.

    The difference of the two channels' means has to be certain in both splits, with opposite signs and nearly the
    same size.
    """
    for column in train.inputs:
        twin = other.columns.get(column.path)
        here, there = _apart(column), _apart(twin) if twin is not None else None
        if here is None or there is None:
            continue
        (mean, error), (mean2, error2) = here, there
        certain = abs(mean) > _ERRORS * error and abs(mean2) > _ERRORS * error2
        if certain and mean * mean2 < 0 and abs(mean + mean2) < _ALIKE * max(abs(mean), abs(mean2)):
            yield (
                column.path,
                f"the first is on average {mean:+.3g} above the last in training and {mean2:+.3g} in evaluation",
            )


def _apart(column: Column) -> tuple[float, float] | None:
    """Mean difference of the first and the last of three channels over the samples, and its standard error.

    The difference is one of pixel levels, so that a normalisation does not count; ``None`` where it can't be undone.
    """
    shape = column.shapes.most_common(1)[0][0]
    axis = channel_axis(shape)
    units = units_of(column) if axis is not None and shape[axis] == 3 else None
    if units is None or axis is None or len(units) != 3 or len(column.values) < _FEWEST_SAMPLES:
        return None
    scale = original_scale(units)
    if scale is None:
        return None
    step, offset = scale
    means = [
        value.double().movedim(axis, 0).flatten(1).mean(1)
        for value in column.values
        if value.ndim == 3 and value.shape[axis] == 3 and value.numel()
    ]
    found = torch.stack(means) / step + offset
    apart = (found[:, 0] - found[:, 2])[found.isfinite().all(1)]
    if len(apart) < _FEWEST_SAMPLES:
        return None
    return float(apart.mean()), float(apart.std() / len(apart) ** 0.5)
