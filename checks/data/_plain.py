"""Batches as they come: whether they are one value per sample under each key, and what a tensor holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from debugkit.data.rows import Rows


def is_plain(batch: Any) -> bool:
    """Whether a batch holds nothing but plain tensors, arrays, numbers and texts, all of which can be read."""
    if isinstance(batch, torch.Tensor):
        readable = batch.layout is torch.strided and not batch.is_complex() and not batch.is_meta
        return readable and not batch.is_quantized and not batch.is_nested
    if isinstance(batch, np.ndarray):
        return batch.dtype.kind in "biuf"
    if batch is None or isinstance(batch, (bool, int, float, str, np.number)):
        return True
    if isinstance(batch, Mapping):
        return all(is_plain(value) for value in batch.values())
    if isinstance(batch, (list, tuple)):
        return all(is_plain(value) for value in batch)
    return False


def are_samples(rows: Rows) -> bool:
    """Whether every part of the batches has one entry per sample, as the nodes and edges of graphs do not."""
    return all(len(set(lengths.values())) <= 1 for lengths in rows.lengths)


def content(tensor: torch.Tensor) -> bytes:
    """The bytes of a plain tensor of any type."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())
