"""A model's outputs row by row, and how far they moved from one pass to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit.data.batch import tensors
from debugkit.tracing.program import primary_output

_LOW = (torch.float16, torch.bfloat16)
_MOST_FOR_SPREAD = 2**20


@dataclass(frozen=True, eq=False)
class RowOutputs:
    """One floating-point output with a row for each sample.

    Attributes:
        path: where it is among the outputs; empty for the only one.
        values: ``[rows, ...]`` on its device, at least in single precision.
        shape: of the tensor as the model gave it.
        low: whether it was computed in half precision.
    """

    path: str
    values: torch.Tensor = field(repr=False)
    shape: tuple[int, ...]
    low: bool

    @property
    def positions(self) -> int | None:
        """The length of the first dimension after the rows, where there is another one after it."""
        return self.values.shape[1] if self.values.ndim >= 3 else None

    @property
    def spread(self) -> float:
        """The middle half's width of the finite values, or their deviation, or size where that is 0."""
        values = self.values.flatten()
        values = values[:: max(1, values.numel() // _MOST_FOR_SPREAD)]
        values = values[values.isfinite()].double()
        if not values.numel():
            return 1.0
        low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device))
        if float(high - low) > 0:
            return float(high - low)
        return float(values.std(correction=0)) or float(values.abs().max()) or 1.0

    def change(self, other: RowOutputs, spread: float) -> torch.Tensor:
        """How far each value moved, ``[rows, ...]`` in units of ``spread``."""
        return ((other.values - self.values).abs() / spread).nan_to_num(0.0, posinf=float("inf"))


def row_outputs(outputs: Any, rows: int, length: int | None, low: bool) -> list[RowOutputs]:
    """The outputs that have a row for each sample, the likely predictions first.

    Args:
        outputs: what the model returned.
        rows: how many samples it was given.
        length: the number of positions of a sample, to tell the rows of flattened outputs.
        low: whether the model computes in half precision.
    """
    first = primary_output(outputs)
    ordered = sorted(tensors(outputs), key=lambda item: item[1] is not first)
    found = []
    for path, tensor in ordered:
        if not tensor.is_floating_point() or tensor.ndim < 1 or not tensor.numel() or tensor.is_sparse:
            continue
        values = _rows_first(tensor.detach(), rows, length)
        if values is not None:
            found.append(RowOutputs(path, _single(values), tuple(tensor.shape), low or tensor.dtype in _LOW))
    return found


def _rows_first(tensor: torch.Tensor, rows: int, length: int | None) -> torch.Tensor | None:
    if len(tensor) == rows:
        return tensor
    if length is not None and len(tensor) == rows * length:
        return tensor.reshape(rows, length, *tensor.shape[1:])
    return None


def _single(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype is torch.float64 else values.float()
