"""What no model can get right: identical inputs with different targets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch

from debugkit.data.batch import input_ids, split, tensors


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
    return _errors(pairs)


def blind_errors(batch: Any, rows: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100) -> int:
    """How many targets a model gets wrong that sees one token at a time, such as a bigram model.

    Such a model shows itself by giving identical predictions for a token wherever it stands.

    Args:
        batch: a batch with token ids ``[batch, length]``.
        rows: predictions ``[positions, classes]`` in the order of the tokens.
        targets: class indices ``[positions]``.
        ignore_index: targets that do not count.

    Returns:
        0 for a model that tells equal tokens apart by their context.
    """
    ids = input_ids(batch)
    if ids is None or len(rows) not in (ids.numel(), ids.shape[0] * (ids.shape[1] - 1)):
        return 0
    tokens = (ids if len(rows) == ids.numel() else ids[:, :-1]).reshape(-1).tolist()
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(rows.shape[1], generator=generator, dtype=torch.float64).to(rows.device)
    marks = (rows.double() * weights).sum(1).tolist()
    seen: dict[float, int] = {}
    if len(set(marks)) == len(marks) or any(
        seen.setdefault(m, t) != t for m, t in zip(marks, tokens, strict=True)
    ):
        return 0
    kept = (
        (mark, target) for mark, target in zip(marks, targets.tolist(), strict=True) if target != ignore_index
    )
    return _errors(kept)


def _errors(pairs: Iterable[tuple[Hashable, Any]]) -> int:
    groups: dict[Hashable, Counter[Any]] = defaultdict(Counter)
    for key, target in pairs:
        groups[key][target] += 1
    return sum(sum(targets.values()) - max(targets.values()) for targets in groups.values())


def _sample_pairs(inputs: Any, labels: torch.Tensor) -> Iterator[tuple[Hashable, Any]]:
    rows = len(labels)
    found = [t.detach().cpu() for _, t in tensors(inputs) if t.ndim >= 1 and t.shape[0] == rows]
    for row in range(rows):
        yield tuple(_bytes(t[row]) for t in found), labels[row].item()


def _bytes(values: torch.Tensor) -> bytes:
    dense = values if values.layout is torch.strided else values.to_dense()
    return dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""


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
