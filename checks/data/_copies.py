"""Labels that stand in the inputs as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from debugkit import Target
from debugkit.data.batch import LABEL_KEYS, tensors
from debugkit.data.feature_blocks import is_mask, is_tokens
from debugkit.data.rows import Column, Rows
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep

_BITS = 30.0
_DISTINCT = 8
_FIRST = 64


@dataclass(frozen=True)
class Copy:
    """An input, or a part of one, that equals the labels in every sample.

    Attributes:
        label: the path of the labels.
        path: the path of the input.
        part: which part of it, such as ``value 3`` or ``[:, -1]``; ``None`` for all of it.
        samples: how many samples were compared.
        tokens: whether the input is a row of whole numbers, such as token ids.
    """

    label: str
    path: str
    part: str | None
    samples: int
    tokens: bool = False


def copies(rows: Rows) -> Iterator[Copy]:
    """Every input that holds the labels, the first part that does."""
    for label in rows.labels:
        wanted = label.stacked()
        if wanted is None or label.reduced or not wanted.numel():
            continue
        for column in rows.inputs:
            given = column.stacked()
            if given is None or column.samples != label.samples or is_mask(column.path):
                continue
            part = _part(given, wanted)
            if part is not None and _is_no_chance(wanted, given[0].numel()):
                yield Copy(label.path, column.path, part or None, len(wanted), is_tokens(column))


def _part(given: torch.Tensor, wanted: torch.Tensor) -> str | None:
    """Where in ``given`` the values of ``wanted`` stand: ``""`` for everywhere, ``None`` for nowhere."""
    target = _squeezed(wanted)
    if _equal(_squeezed(given), target):
        return ""
    if target.ndim == 1:
        return _column(given.reshape(len(given), -1), target)
    for axis in range(1, given.ndim):
        rest = given.select(axis, 0)
        if given.shape[axis] > 1 and _squeezed(rest).shape == target.shape:
            for index in range(given.shape[axis]):
                if _equal(_squeezed(given.select(axis, index)), target):
                    return f"[{':, ' * axis}{index - given.shape[axis] if index == given.shape[axis] - 1 else index}]"
    return None


def _column(flat: torch.Tensor, target: torch.Tensor) -> str | None:
    """The column of ``[n, d]`` that equals ``[n]``: narrowed down on the first rows, proved on all."""
    if flat.shape[1] < 2:
        return None
    head = _same(flat[:_FIRST], target[:_FIRST, None]).all(0)
    for index in head.nonzero().flatten().tolist():
        if _equal(flat[:, index], target):
            return f"value {index}"
    return None


def _squeezed(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(len(values), *(side for side in values.shape[1:] if side != 1))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(_same(one, other).all())


def _same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Equal values; of floats in different precisions, up to rounding to the coarser one."""
    if one.is_floating_point() and other.is_floating_point() and one.dtype != other.dtype:
        coarse = max((one.dtype, other.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        one, other = one.to(coarse), other.to(coarse)
    return (one == other) | (one.isnan() & other.isnan())


def _is_no_chance(wanted: torch.Tensor, places: int) -> bool:
    """Whether the labels vary too much to stand in one of so many places by chance."""
    values = wanted.reshape(len(wanted), -1).to(torch.float64).numpy()
    if wanted.is_floating_point() and len(np.unique(values)) >= _DISTINCT:
        return True
    _, counts = np.unique(values, axis=0, return_counts=True)
    shares = counts / counts.sum()
    bits = float(-(shares * np.log2(shares)).sum()) * len(wanted)
    return bits > _BITS + math.log2(max(places, 1))


def reaches(path: str, column: Column, target: Target, batches: Batches, step: TrainingStep | None) -> bool:
    """Whether the model is given an input, as far as that can be told: by name, or by its values.

    A key beside the labels may be there for the loss, or for nobody.
    """
    if step is None or step.root_call is None:
        return path.rpartition(".")[2] not in LABEL_KEYS and target.training_step is None
    args, kwargs = step.root_call
    given = {name: value for name, value in kwargs.items() if name not in LABEL_KEYS}
    if path in given:
        return True
    here = next((t for place, t in tensors(batches.first) if place == path), None)
    seen = [t for _, t in tensors([*args, *given.values()])]
    seen += [v for v in args if isinstance(v, Mapping) for _, v in tensors(v)]
    if here is None:
        return False
    return any(_holds(tensor, here) for tensor in seen)


def _holds(tensor: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether a tensor has the values of another one, in any shape and precision, or holds it as some columns."""
    if not tensor.ndim or not part.ndim or len(tensor) != len(part) or not part.numel():
        return False
    whole, piece = _flat(tensor), _flat(part)
    if whole.shape[1] < piece.shape[1]:
        return False
    if whole.shape == piece.shape:
        return bool((whole == piece).all())
    first = (whole == piece[:, :1]).all(0).nonzero().flatten().tolist()
    return any(
        whole[:, start : start + piece.shape[1]].shape == piece.shape
        and bool((whole[:, start : start + piece.shape[1]] == piece).all())
        for start in first[:16]
    )


def _flat(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().reshape(len(tensor), -1).float()
