"""Whole numbers as targets: amounts with an order that the inputs know, or names of classes."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch

from debugkit.data.features import FeatureMap
from debugkit.data.rows import Column, Rows

_FEWEST = 5
_MOST_CODES = 50
_CLEAR = 3.0
_ORDERED = 0.5


def order_in_inputs(rows: Rows, labels: Column) -> Literal["ordered", "unordered", "unknown"]:
    """Whether samples with neighbouring numbers have more similar inputs than samples with distant ones.

    The distances between the mean inputs of any two numbers, less what noise adds, are ranked against the
    difference of the numbers.

    Args:
        rows: the scanned samples.
        labels: one whole number per sample.
    """
    values = labels.stacked()
    if values is None or len(values) != rows.count:
        return "unknown"
    values = values.reshape(len(values), -1)[:, 0].long()
    counts = Counter(values.tolist())
    codes = torch.tensor([code for code in sorted(counts) if counts[code] >= _FEWEST])
    if not 3 <= len(codes) <= _MOST_CODES:
        return "unknown"
    features = FeatureMap(rows).read(rows)
    if features is None:
        return "unknown"
    matrix = torch.from_numpy(features.matrix)
    groups = [matrix[values == code] for code in codes]
    centres = torch.stack([group.mean(0) for group in groups])
    noise = torch.stack([group.var(0) / len(group) for group in groups])
    distances, clear, apart = [], [], []
    for i in range(len(codes)):
        for j in range(i):
            error = noise[i] + noise[j]
            excess = float(((centres[i] - centres[j]) ** 2 - error).sum())
            distances.append(excess)
            clear.append(excess / max(float((2 * error**2).sum()) ** 0.5, 1e-12))
            apart.append(abs(int(codes[i]) - int(codes[j])))
    if torch.tensor(clear).median() < _CLEAR:
        return "unknown"
    if len(codes) == 3:
        farthest = distances[apart.index(max(apart))]
        return "ordered" if farthest >= max(distances) else "unordered"
    ranks = torch.stack([_ranks(distances), _ranks(apart)])
    return "ordered" if float(torch.corrcoef(ranks)[0, 1]) >= _ORDERED else "unordered"


def _ranks(values: list[float] | list[int]) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    below = (tensor[:, None] > tensor[None]).sum(1)
    same = (tensor[:, None] == tensor[None]).sum(1)
    return below + (same - 1) / 2
