"""Which dimension of a call's tensors is that of the samples, and which tensors have it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from debugkit.data.batch import named, size, tensors
from debugkit.errors import Unavailable
from debugkit.tracing.edits import Material
from debugkit.tracing.root_call import RootCall, is_label


def row_count(call: RootCall, batch: Any) -> int:
    """The number of rows of a call.

    Raises:
        Unavailable: it has no tensors.
    """
    sizes = Counter(
        len(tensor)
        for path, tensor in call.tensors.items()
        if tensor.ndim and tensor.numel() and not is_label(path)
    )
    if not sizes:
        raise Unavailable("the model is called without tensors")
    given = size(batch)
    if given is not None and given in sizes:
        return given
    return sizes.most_common(1)[0][0]


def unaligned_input(call: RootCall, material: Material) -> str | None:
    """An input with neither an entry for each row nor one for all of them."""
    length = material.values.shape[1] if material.values.ndim > 1 else None
    for path, tensor in call.tensors.items():
        if tensor.ndim == 0 or tensor.numel() <= 1 or is_label(path):
            continue
        if tensor.layout is not torch.strided:
            return path
        square = (
            material.rows > 1 and tensor.shape[:2] == (material.rows, material.rows) and path != material.main
        )
        if square and tensor.ndim == 2 and length != material.rows:
            return path
        shared = len(tensor) == 1 or len(tensor) == length or tensor.shape[-2:] == (length, length)
        if len(tensor) != material.rows and not shared:
            return path
    return None


def knows_axis(call: RootCall, material: Material, batch: Any, loader_rows: int | None) -> bool:
    """Whether something says that the first dimension is that of the samples."""
    count, main = material.rows, material.values
    if any(len(tensor) == count for _, tensor in tensors(batch) if tensor.ndim == 1):
        return True
    if main.is_floating_point() and main.ndim != 3:
        return True
    if named(batch, "input_ids") is not None or named(batch, "attention_mask") is not None:
        return True
    return loader_rows == count and main.ndim > 1 and main.shape[1] != count
