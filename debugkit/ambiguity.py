"""What no model can get right: identical inputs with different targets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from typing import Any

import torch

from debugkit.batch import input_ids, split, tensors


def unavoidable_errors(batch: Any, ignore_index: int = -100) -> int:
    """How many targets a perfect model still gets wrong on this batch.

    Samples with identical inputs share a prediction. Targets per token (the shape of the token ids) are
    grouped by the tokens up to their position, which is all that a causal model sees; for a model that sees
    the whole row the figure is an upper bound.
    """
    inputs, labels = split(batch)
    if not isinstance(labels, torch.Tensor):
        return 0
    ids = input_ids(batch)
    if ids is not None and labels.shape == ids.shape and not labels.is_floating_point():
        pairs = _prefix_pairs(ids.cpu(), labels.cpu(), ignore_index)
    elif labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
        pairs = _sample_pairs(inputs, labels.reshape(-1).cpu())
    else:
        return 0
    groups: dict[Hashable, Counter[Any]] = defaultdict(Counter)
    for key, target in pairs:
        groups[key][target] += 1
    return sum(sum(targets.values()) - max(targets.values()) for targets in groups.values())


def _sample_pairs(inputs: Any, labels: torch.Tensor) -> Iterator[tuple[Hashable, Any]]:
    rows = len(labels)
    found = [t.detach().cpu() for _, t in tensors(inputs) if t.ndim >= 1 and t.shape[0] == rows]
    for row in range(rows):
        key = tuple(
            t[row].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t[row].numel() else b""
            for t in found
        )
        yield key, labels[row].item()


def _prefix_pairs(
    ids: torch.Tensor, labels: torch.Tensor, ignore_index: int
) -> Iterator[tuple[Hashable, Any]]:
    counted = labels != ignore_index
    shift = 1 if bool((labels == ids)[counted].all()) else 0
    for row, targets in zip(ids.tolist(), labels.tolist(), strict=True):
        for position in range(len(row) - shift):
            target = targets[position + shift]
            if target != ignore_index:
                yield tuple(row[: position + 1]), target
