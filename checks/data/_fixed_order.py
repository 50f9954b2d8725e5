"""Whether a fixed order of the samples is meant, or somebody else's finding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from debugkit import Target
from debugkit.data.rows import Column, Rows
from debugkit.probes.epochs import Epochs
from debugkit.probes.label_use import LabelUse
from debugkit.probes.samples import Samples, ignored_labels
from debugkit.state.objects import reachable

from ._label_order import LabelSequence, Purity, Runs, comes_in_blocks, label_sequences
from ._series import are_neighbours_alike, is_running_text, is_series

_UNSUPERVISED = {"none": "there are no labels", "other": "the labels are no classes and no numbers"}

_FEWEST = 8
_COMPARED = 64
_LARGEST = 2**22
_LOOKED_INTO = 256


def intended(epochs: Epochs, samples: Samples, target: Target, use: LabelUse | None) -> str | None:
    """Why a fixed order is no finding of its own; ``None`` where nothing speaks for it."""
    rows, kind = samples.rows, samples.labels.kind
    if is_running_text(rows) and kind in ("tokens", "none", "other"):
        return "the rows are pieces of running text"
    if is_series(rows):
        return "the samples are windows of a series"
    if kind in _UNSUPERVISED:
        return _UNSUPERVISED[kind]
    for sequence in label_sequences(samples, use, ignored_labels(target)):
        if sequence.classes and _is_ordered(sequence):
            return "see `label-order`"
        if not sequence.classes and are_neighbours_alike(sequence.values):
            return "the targets follow each other as a series does"
    if epochs.places is not None and epochs.places != sorted(epochs.places) and _by_length(rows):
        return "the samples are sorted by length"
    return None


def is_frozen_permutation(samples: Samples, target: Target) -> bool:
    """Whether the samples are rows of an array that hangs on the loader, in another order than it has them."""
    rows = samples.rows
    arrays = [
        value for value in reachable(target.train_loader, most=_LOOKED_INTO) if _is_array(value, rows.count)
    ]
    for column in rows.inputs:
        if column.reduced or len(column.values) < _FEWEST or len(column.shapes) != 1:
            continue
        for array in arrays:
            places = _places(column.values[:_COMPARED], torch.as_tensor(array))
            if places is not None and not _is_upward(places, rows.batch_sizes):
                return True
    return False


def _is_upward(places: Sequence[int], batch_sizes: Sequence[int]) -> bool:
    """Whether places rise within every batch; from batch to batch workers may take turns."""
    start = 0
    for size in batch_sizes:
        batch = list(places[start : start + size])
        if batch != sorted(batch):
            return False
        start += size
    return True


def _is_array(value: object, rows: int) -> bool:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return False
    if not isinstance(value, (torch.Tensor, np.ndarray)) or getattr(value, "is_sparse", False):
        return False
    return value.ndim > 0 and rows <= len(value) and torch.as_tensor(value).numel() <= _LARGEST


def _places(values: Sequence[torch.Tensor], array: torch.Tensor) -> list[int] | None:
    """Where each value is in an array, if each is there once."""
    if array.shape[1:] != values[0].shape:
        return None
    found = []
    for value in values:
        same = (array.detach().cpu() == value).reshape(len(array), -1).all(1).nonzero().flatten().tolist()
        if len(same) != 1:
            return None
        found += same
    return found


def _is_ordered(sequence: LabelSequence) -> bool:
    """Whether the classes come sorted, or in blocks."""
    runs = Runs.of(sequence.values)
    return runs.runs == runs.classes or (runs.classes > 1 and comes_in_blocks(Purity.of(sequence)))


def _by_length(rows: Rows) -> bool:
    """Whether batches come in the order of their samples' lengths."""
    lengths = [found for column in rows.inputs if (found := _lengths(column, rows)) is not None]
    return any(_is_sorted(one) for one in lengths)


def _lengths(column: Column, rows: Rows) -> list[int] | None:
    """Per batch, the longest sample."""
    if len(column.values) != rows.count or any(value.ndim == 0 for value in column.values[:1]):
        return None
    longest, start = [], 0
    for size in rows.batch_sizes:
        longest.append(max(value.shape[0] for value in column.values[start : start + size]))
        start += size
    return longest


def _is_sorted(lengths: list[int]) -> bool:
    steps = np.diff(lengths)
    return len({*lengths}) > 2 and (bool((steps >= 0).all()) or bool((steps <= 0).all()))
