"""A batch as columns: one value per sample under each key, whatever the batch is made of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from debugkit.data.batch import LABEL_KEYS, split

_DEEPEST = 4


@dataclass(frozen=True, eq=False)
class BatchColumns:
    """The columns of one batch.

    Attributes:
        size: the number of samples.
        tensors: by path, such as ``input_ids`` or ``[0]``: one tensor per sample, or a tensor with them along its
            first dimension.
        texts: by path: one text per sample.
        labels: the paths of the labels.
        lengths: by path: how many samples each part of the batch seems to hold, the odd ones included.
    """

    size: int
    tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]]
    texts: Mapping[str, Sequence[str]]
    labels: frozenset[str]
    lengths: Mapping[str, int] = field(default_factory=dict)


def columns_of(batch: Any) -> BatchColumns:
    """The columns of a batch: tensors, arrays, lists of numbers, of texts, or of one tensor or mapping per sample.

    What has no batch dimension, or another number of samples than most parts, is left out of the columns.
    """
    found = [*_parts(batch, "", _DEEPEST)]
    lengths = {path: len(value) for path, value in found if _has_samples(value)}
    labels = _label_paths(batch, [path for path, _ in found])
    if not lengths:
        return BatchColumns(0, {}, {}, labels)
    size = _most_common(list(lengths.values()))
    kept = [(path, value) for path, value in found if lengths.get(path) == size]
    return BatchColumns(
        size=size,
        tensors={path: value for path, value in kept if not _is_texts(value)},
        texts={path: value for path, value in kept if _is_texts(value)},
        labels=labels,
        lengths=lengths,
    )


def _most_common(lengths: list[int]) -> int:
    """The most common length; the first of several."""
    counts = Counter(lengths)
    most = max(counts.values())
    return next(length for length in lengths if counts[length] == most)


def _has_samples(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or value.ndim > 0


def _is_texts(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and bool(value) and isinstance(value[0], str)


def _parts(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Everything in a batch that may hold one value per sample."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.as_tensor(value)
    if isinstance(value, torch.Tensor):
        if _is_readable(value):
            yield path, value.detach()
        return
    if not depth or value is None or isinstance(value, (str, bytes, bool, int, float, type, torch.nn.Module)):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}" if path else str(key), depth - 1)
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if (columns := _per_sample(value, path, outermost=depth == _DEEPEST)) is not None:
            yield from columns
            return
        for index, item in enumerate(value[:64]):
            yield from _parts(item, f"{path}[{index}]", depth - 1)
    else:
        for name, item in _attributes(value).items():
            yield from _parts(item, f"{path}.{name}" if path else name, depth - 1)


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name, None) for one in dataclasses.fields(value)}
    found = getattr(value, "__dict__", {})
    return {name: item for name, item in found.items() if not name.startswith("__")}


def _per_sample(value: Sequence[Any], path: str, outermost: bool) -> list[tuple[str, Any]] | None:
    """The columns in a list that holds one item per sample; ``None`` for a list of parts."""
    if not value:
        return None
    if all(isinstance(item, str) for item in value):
        return [] if outermost and len(value) == 1 else [(path, value)]
    if all(isinstance(item, Mapping) for item in value):
        shared = [key for key in value[0] if all(isinstance(item.get(key), torch.Tensor) for item in value)]
        return [(f"{path}[].{key}", [item[key].detach() for item in value]) for key in shared]
    if outermost:
        return None
    if all(isinstance(item, (bool, int, float, np.number)) for item in value):
        return [(path, torch.tensor(value))]
    items = [torch.as_tensor(i) if isinstance(i, np.ndarray) and i.dtype.kind in "biuf" else i for i in value]
    if all(isinstance(item, torch.Tensor) and _is_readable(item) for item in items):
        return [(path, [item.detach() for item in items])]
    if all(isinstance(item, (list, tuple)) and item and _are_numbers(item) for item in items):
        return [(path, [torch.tensor(item) for item in items])]
    return None


def _are_numbers(value: Sequence[Any]) -> bool:
    return all(isinstance(item, (bool, int, float)) for item in value)


def _is_readable(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_complex()
        and not tensor.is_quantized
        and not tensor.is_nested
    )


def _label_paths(batch: Any, paths: list[str]) -> frozenset[str]:
    """The paths of what :func:`debugkit.data.batch.split` takes for the labels."""
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
        if len(batch) < 2:
            return frozenset()
        last = f"[{len(batch) - 1}]"
        return frozenset(path for path in paths if path == last or path.startswith((f"{last}[", f"{last}.")))
    for key in LABEL_KEYS:
        under = frozenset(path for path in paths if path == key or path.startswith((f"{key}.", f"{key}[")))
        if under and not (isinstance(batch, Mapping) and split(batch)[1] is None):
            return under
    return frozenset()
