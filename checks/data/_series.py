"""Data whose order means something: windows of a series, pieces of a longer text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from debugkit.data.rows import Column, Rows

_MOST_PAIRS = 128
_SHARE = 0.9
_FEWEST = 8
_LONGEST_STEP = 64


def is_series(rows: Rows) -> bool:
    """Whether neighbours in loader order are windows of one series: they overlap, or hold the label before."""
    return any(_overlaps(column) for column in rows.inputs) or _labels_come_back(rows)


def are_neighbours_alike(values: np.ndarray[Any, Any]) -> bool:
    """Whether ``[n]`` numbers change far less from one to the next than between any two."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 4 * _FEWEST or not np.isfinite(values).all() or values.std() == 0:
        return False
    steps = np.diff(values)
    return bool((steps**2).mean() < values.var())


def is_running_text(rows: Rows) -> bool:
    """Whether rows of token ids are equally long pieces of a longer text: all full, with different ends."""
    for column in rows.inputs:
        values = column.stacked() if not column.is_floating else None
        if values is None or values.ndim != 2 or values.shape[1] < _FEWEST or len(values) < 2:
            continue
        ends = values[:, -1].tolist()
        if (
            column.path.rpartition(".")[2].endswith("mask")
            or max(ends.count(end) for end in {*ends}) > len(ends) / 2
        ):
            continue
        return not any(
            other.path.rpartition(".")[2] == "attention_mask" and bool((other.minimum == 0).any())
            for other in rows.inputs
        )
    return False


def _overlaps(column: Column) -> bool:
    """Whether each sample begins where a part of the one before went on."""
    values = column.values[: _MOST_PAIRS + 1]
    if column.reduced or len(values) < _FEWEST or len({value.shape for value in values}) != 1:
        return False
    length = values[0].shape[0] if values[0].ndim else 0
    varied = [one for one in values if not bool((one == one[:1]).all())] if length > 1 else []
    if len(varied) < len(values) / 2:
        return False
    for step in range(1, min(length // 2, _LONGEST_STEP) + 1):
        same = [torch.equal(one[step:], other[:-step]) for one, other in pairwise(values)]
        if sum(same) >= _SHARE * len(same):
            return True
    return False


def _labels_come_back(rows: Rows) -> bool:
    """Whether a sample's target is among the inputs of the next, as for forecasts."""
    for label in rows.labels:
        if not label.is_floating or any(value.numel() != 1 for value in label.values[:1]):
            continue
        targets = label.values[:_MOST_PAIRS]
        for column in rows.inputs:
            if not column.is_floating or column.reduced or len(column.values) != len(label.values):
                continue
            later = column.values[1 : len(targets)]
            same = [bool((x == y).any()) for y, x in zip(targets, later, strict=False)]
            varied = len({float(y) for y in targets}) > len(targets) / 2
            if varied and len(same) >= _FEWEST and sum(same) >= _SHARE * len(same):
                return True
    return False
