"""Class weights held against how often the classes occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

Order = Literal["fits", "other order", "inverted", "unclear"]

_CLOSE = 1.6
_FAR = 2.5
_UNEVEN = 1.5
_RANKED = 0.8


def order_of(weights: Sequence[float], counts: Mapping[int, int]) -> Order:
    """How class weights relate to class counts.

    Weights that compensate for an imbalance fall as the counts grow. ``other order`` are the right weights for
    these counts at the wrong classes; ``inverted`` are weights that grow with the counts.

    Args:
        weights: per class.
        counts: by class; classes that were not seen are left out.
    """
    classes = [c for c, count in counts.items() if count > 0 and 0 <= c < len(weights) and weights[c] > 0]
    if len(classes) < 2:
        return "unclear"
    given = torch.tensor([float(weights[c]) for c in classes], dtype=torch.float64)
    seen = torch.tensor([float(counts[c]) for c in classes], dtype=torch.float64)
    if _spread(given) < _UNEVEN**0.5 or _spread(seen) < (2 if len(classes) == 2 else _UNEVEN):
        return "unclear"
    if _spread(given * seen) <= _CLOSE:
        return "fits"
    rank = _rank_correlation(given, seen)
    if _spread(given) >= _UNEVEN and rank > -_RANKED:
        matched = given.sort(descending=True).values * seen.sort().values
        if len(classes) > 2 and _spread(matched) <= _CLOSE and _spread(given * seen) >= _FAR:
            return "other order" if rank < _RANKED else "inverted"
    return "inverted" if rank >= _RANKED else "unclear"


def inverted_positives(weights: Sequence[float], on: Sequence[int], total: int) -> list[int]:
    """Labels whose ``pos_weight`` makes the larger side weigh even more: near positives per negative, not the reverse.

    Args:
        weights: one per label, or one for all.
        on: how often each label is on.
        total: how many samples were counted.
    """
    found = []
    for label, count in enumerate(on):
        weight = weights[label] if len(weights) == len(on) else weights[0]
        if not 0 < count < total or weight <= 0:
            continue
        odds = count / (total - count)
        skewed = max(odds, 1 / odds) >= 2
        if skewed and 1 / _CLOSE <= weight / odds <= _CLOSE:
            found.append(label)
    return found


def _spread(values: torch.Tensor) -> float:
    return float(values.max() / values.min())


def _rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    if len(one) == 2:
        return float(((one[1] - one[0]) * (other[1] - other[0])).sign())
    ranks = torch.stack([_ranks(one), _ranks(other)])
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num(0.0))


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks with ties at their mean."""
    below = (values[:, None] > values[None]).sum(1)
    same = (values[:, None] == values[None]).sum(1)
    return below + (same - 1) / 2
