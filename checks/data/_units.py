"""What of an input has a scale of its own: its columns, its channels, or all of its values together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from debugkit.data.rows import Column

MOST_COLUMNS = 1000
"""Values per sample up to which a vector is a row of a table, and not a signal."""

_CHANNELS = 4
_SMALLEST_SIDE = 8
_MOST_VALUES = 2**21

UnitKind = Literal["column", "channel", "value"]


@dataclass(frozen=True, eq=False)
class Units:
    """The values of a column of the batch, unit by unit.

    Attributes:
        kind: ``column`` of a table, ``channel`` of an image or a sequence, or one unit of all ``value``.
        values: ``[units, count]`` float64; what is not finite is left out where there is a single unit, and NaN
            otherwise.
        samples: how many samples they are from.
    """

    kind: UnitKind
    values: torch.Tensor = field(repr=False)
    samples: int

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def finite(self) -> torch.Tensor:
        """``[units, count]``: where the values are finite."""
        return self.values.isfinite()

    @cached_property
    def counts(self) -> torch.Tensor:
        """``[units]``: finite values."""
        return self.finite.sum(1).clamp(min=1)

    @cached_property
    def mean(self) -> torch.Tensor:
        """``[units]``: means of the finite values."""
        return self.values.where(self.finite, 0.0).sum(1) / self.counts

    @cached_property
    def std(self) -> torch.Tensor:
        """``[units]``: population standard deviations of the finite values."""
        apart = (self.values - self.mean[:, None]).where(self.finite, 0.0)
        return (apart.square().sum(1) / self.counts).sqrt()

    @cached_property
    def minimum(self) -> torch.Tensor:
        """``[units]``: smallest finite values."""
        return self.values.where(self.finite, float("inf")).amin(1)

    @cached_property
    def maximum(self) -> torch.Tensor:
        """``[units]``: largest finite values."""
        return self.values.where(self.finite, float("-inf")).amax(1)

    @cached_property
    def distinct(self) -> torch.Tensor:
        """``[units]``: different values, counted up to 64 and over at most 4,096 of them."""
        rows = thinned(self.values, 4096)
        return torch.tensor([min(len(row[row.isfinite()].unique()), 64) for row in rows])

    @cached_property
    def commonest(self) -> torch.Tensor:
        """``[units]``: share of the most common value, over at most 4,096 values."""
        rows = thinned(self.values, 4096)
        return (rows == rows.mode(1, keepdim=True).values).double().mean(1)

    @property
    def dense(self) -> torch.Tensor:
        """``[units]``: which hold many different values, none of them most of the time."""
        return (self.distinct >= 16) & (self.commonest < 0.5)

    def constant(self) -> torch.Tensor:
        """``[units]``: which hold one value throughout."""
        return self.maximum == self.minimum

    def name(self, unit: int) -> str:
        """How findings call a unit."""
        return "its values" if self.kind == "value" else f"{self.kind} {unit}"


def units_of(column: Column, axis: int | None = None) -> Units | None:
    """A column's values by unit; ``None`` where it holds none.

    Args:
        column: of numbers.
        axis: the dimension of a sample that holds the units, where a layer tells it; by the shape otherwise.
    """
    values = _evenly(column.values)
    if not values:
        return None
    shape = column.shapes.most_common(1)[0][0]
    if axis is None:
        axis = _axis(shape)
    if not shape:
        return Units(
            "column", torch.stack([value.double().reshape(()) for value in values])[None], len(values)
        )
    if axis is not None and len({(value.ndim, value.shape[axis]) for value in values}) == 1:
        moved = [value.movedim(axis, 0).reshape(value.shape[axis], -1) for value in values]
        kind: UnitKind = "column" if len(shape) == 1 else "channel"
        return Units(kind, torch.cat(moved, 1).double(), len(values))
    flat = torch.cat([value.reshape(-1) for value in values]).double()
    flat = flat[flat.isfinite()]
    return Units("value", flat[None], len(values)) if len(flat) else None


def channels_of(sample: torch.Tensor) -> Units:
    """The channels of a batch ``[samples, channels, ...]``."""
    return Units("channel", sample.movedim(1, 0).flatten(1).double(), len(sample))


def thinned(values: torch.Tensor, most: int) -> torch.Tensor:
    """Evenly spaced values along the last dimension, at most so many, out of step with the lines of images."""
    count = values.shape[-1]
    return values if count <= most else values[..., torch.linspace(0, count - 1, most).long()]


def is_image(shape: Sequence[int]) -> bool:
    """Whether a sample of this shape can be an image: two sides of at least 8, and channels first or last."""
    sides = sorted(shape)
    return len(shape) in (2, 3) and sides[-2] >= _SMALLEST_SIDE


def channel_axis(shape: Sequence[int]) -> int | None:
    """The dimension of an image's channels; ``None`` for anything else, and for an image without that dimension."""
    if len(shape) != 3 or not is_image(shape):
        return None
    few = [axis for axis in (0, 2) if shape[axis] <= _CHANNELS]
    return few[0] if few else 0


def _axis(shape: tuple[int, ...]) -> int | None:
    if len(shape) == 1:
        return 0 if shape[0] <= MOST_COLUMNS else None
    return channel_axis(shape)


def _evenly(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Samples from all over the column, as many as there is room for."""
    if not values:
        return []
    size = max(1, sum(value.numel() for value in values) // len(values))
    step = -(-len(values) * size // _MOST_VALUES)
    return [value for value in values[:: max(1, step)] if value.numel()]
