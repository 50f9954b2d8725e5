"""A few short samples out of the first batches, as batches of the same kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from debugkit.data.batch import input_ids, map_tensors, named, size, sliceable, split, take, tensors


def few_samples(batches: Sequence[Any], count: int, longest: int = 64) -> list[Any]:
    """``count`` samples that cover the labels, short ones first; whole batches where they can't be cut.

    Args:
        batches: batches as the loader yields them.
        count: how many samples to pick.
        longest: rows whose targets are per token are cut to this many tokens, where every row keeps a target.

    Returns:
        One batch when some batch has enough rows, else several small ones.
    """
    cuttable = [batch for batch in batches if sliceable(batch) and _indexable(batch)]
    if not cuttable:
        return [batches[0]]
    large = [batch for batch in cuttable if (size(batch) or 0) >= count]
    if large:
        picks = [(_pick(batch, count), batch) for batch in large]
        rows, batch = max(picks, key=lambda pair: _variety(*pair))
        return [trim(take(batch, rows), longest)]
    chosen, total = [], 0
    for batch in cuttable:
        chosen.append(trim(batch, longest))
        total += size(batch) or 1
        if total >= count:
            break
    return chosen


def trim(batch: Any, longest: int) -> Any:
    """Drop the columns that are padding in every row, and the far end of long rows with targets per token."""
    mask, ids = named(batch, "attention_mask"), input_ids(batch)
    if mask is None or ids is None or mask.shape != ids.shape:
        return batch
    used = mask.bool().any(0).nonzero().flatten()
    if not len(used):
        return batch
    first, last = int(used[0]), int(used[-1]) + 1
    _, labels = split(batch)
    if isinstance(labels, torch.Tensor) and labels.shape == ids.shape and last - first > longest:
        window = slice(first, first + longest)
        if bool((labels[:, window] != -100).sum(1).gt(1).all()):
            last = first + longest
    shape = ids.shape
    return map_tensors(batch, lambda t: t[:, first:last] if t.shape == shape else t)


def _indexable(batch: Any) -> bool:
    return all(tensor.layout in (torch.strided, torch.sparse_coo) for _, tensor in tensors(batch))


def _pick(batch: Any, count: int) -> list[int]:
    lengths, labels = _lengths(batch), _labels(batch)
    by_label: dict[Any, list[int]] = defaultdict(list)
    for row in sorted(range(size(batch) or 0), key=lambda row: lengths[row] if lengths else 0):
        by_label[labels[row]].append(row)
    picked: list[int] = []
    while len(picked) < count and any(by_label.values()):
        for rows in by_label.values():
            if rows and len(picked) < count:
                picked.append(rows.pop(0))
    return sorted(picked)


def _variety(rows: Sequence[int], batch: Any) -> tuple[int, int]:
    """How many labels the rows have, and how many rows have another label than most."""
    labels = _labels(batch)
    found = Counter(labels[row] for row in rows)
    return len(found), len(rows) - max(found.values())


def _labels(batch: Any) -> list[Any]:
    """What each row is to be told as: its class, or the set of classes in its map or sequence."""
    rows = size(batch) or 0
    _, labels = split(batch)
    if not isinstance(labels, torch.Tensor) or labels.layout is not torch.strided or not labels.numel():
        return [None] * rows
    if labels.ndim < 1 or len(labels) != rows:
        return [None] * rows
    flat = labels.detach().reshape(rows, -1).cpu()
    if flat.is_complex() or (flat.is_floating_point() and not bool(((flat == 0) | (flat == 1)).all())):
        return [None] * rows
    return [tuple(row.unique().tolist()) for row in flat]


def _lengths(batch: Any) -> list[int] | None:
    mask = named(batch, "attention_mask") if isinstance(batch, Mapping) else None
    return mask.reshape(mask.shape[0], -1).sum(1).tolist() if mask is not None and mask.ndim >= 2 else None
