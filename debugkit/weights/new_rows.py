"""Rows that were added to an embedding table after it was trained, recognised by their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

_MOST_NEW_ROWS = 4096
_FEWEST_OTHERS = 8

Mark = Literal["mean", "zero", "norm"]


@dataclass(frozen=True)
class NewRows:
    """The last rows of a table, which look added.

    Attributes:
        rows: their numbers.
        mark: what sets them apart: they are at the ``mean`` of the others, ``zero``, or of a ``norm`` far outside
            the others'.
    """

    rows: range
    mark: Mark


@torch.no_grad()
def new_rows(weight: torch.Tensor, padding: int | None) -> NewRows | None:
    """The last rows of a table, where they differ from the others as rows do that were added later.

    Args:
        weight: ``[rows, width]``.
        padding: the row of the padding token, which is zero by itself.

    Returns:
        ``None`` where no row stands out, or where all of the last ones do.
    """
    count = len(weight)
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).cpu()
    tail_start = max(count // 2, count - _MOST_NEW_ROWS)
    mean = weight.mean(0, dtype=torch.float32)
    sample = weight[:: max(1, count // _MOST_NEW_ROWS)].float()
    spread = float(torch.linalg.vector_norm(sample - mean, dim=1).median())
    if not 0 < spread < float("inf"):
        return None
    rounding = 2 * torch.finfo(weight.dtype).eps * float(mean.norm()) / spread
    near = (
        torch.linalg.vector_norm(weight[tail_start:].float() - mean, dim=1).cpu() < (0.01 + rounding) * spread
    )
    zero = norms[tail_start:] == 0
    marks: list[tuple[Mark, torch.Tensor]] = [("zero", zero), ("mean", near)]
    for mark, marked in marks:
        length = _trailing(marked)
        rows = range(count - length, count)
        if not length or length == count - tail_start:
            continue
        if mark == "zero" and bool((norms[: rows.start] == 0).sum() > (padding is not None)):
            return None
        return NewRows(rows, mark)
    return _odd_norms(norms, tail_start)


def _odd_norms(norms: torch.Tensor, tail_start: int) -> NewRows | None:
    """Trailing rows whose norms are all beyond twice the largest, or below half of the smallest, of the others."""
    others = norms[:tail_start]
    others = others[others > 0]
    if len(others) < _FEWEST_OTHERS:
        return None
    low, high = float(others.min()) / 2, float(others.max()) * 2
    length = _trailing((norms[tail_start:] < low) | (norms[tail_start:] > high))
    if not length or length == len(norms) - tail_start:
        return None
    return NewRows(range(len(norms) - length, len(norms)), "norm")


def _trailing(marked: torch.Tensor) -> int:
    """How many values at the end are true."""
    misses = (~marked).nonzero()
    return len(marked) - 1 - int(misses[-1]) if len(misses) else len(marked)
