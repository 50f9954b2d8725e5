"""Values that are not finite: where they are, and whether the training step leaves them out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from debugkit import Target
from debugkit.data.batch import map_tensors, sliceable, take, tensors
from debugkit.data.rows import Column, Rows
from debugkit.errors import Broken
from debugkit.probes.training_step import TrainingStep, gradients_of, run_step
from debugkit.sandbox import Sandbox

_TRIED_ROWS = 4


@dataclass(frozen=True, eq=False)
class Spoiled:
    """A key with values that are not finite.

    Attributes:
        column: the key.
        samples: the numbers of its samples with such values.
        values: how many such values there are.
        kind: ``NaN``, ``infinity``, or both in words.
        place: the one place in a sample that they are at, such as ``3`` or ``[2, 5]``; ``None`` for several.
        is_mask: whether it is 0 and minus infinity only, as masks that are added to attention scores are.
    """

    column: Column
    samples: list[int]
    values: int
    kind: str
    place: str | None
    is_mask: bool


def spoiled_columns(rows: Rows) -> Iterator[Spoiled]:
    """The keys with values that are not finite."""
    for column in rows.columns.values():
        bad = np.flatnonzero(column.nonfinite).tolist()
        if not bad:
            continue
        held = [column.values[number] for number in bad]
        nans = any(bool(value.isnan().any()) for value in held)
        infinite = any(bool(value.isinf().any()) for value in held)
        yield Spoiled(
            column=column,
            samples=[column.samples[number] for number in bad],
            values=int(column.nonfinite.sum()),
            kind=_kind(nans, infinite),
            place=_place(column, held),
            is_mask=not column.is_label and _is_mask(held) and _is_zero(column),
        )


def is_added_mask(tensor: torch.Tensor) -> bool:
    """Whether a tensor is 0 and minus infinity only."""
    return _is_mask([tensor]) and not bool(tensor[tensor.isfinite()].any())


def _kind(nans: bool, infinite: bool) -> str:
    if nans == infinite:
        return "NaN and infinity" if nans else "NaN or infinity"
    return "NaN" if nans else "infinity"


def _is_mask(held: list[torch.Tensor]) -> bool:
    return all(bool((value.isfinite() | (value == -math.inf)).all()) for value in held)


def _is_zero(column: Column) -> bool:
    known = np.isfinite(column.minimum)
    return bool(known.any()) and not column.minimum[known].any() and not column.maximum[known].any()


def _place(column: Column, held: list[torch.Tensor]) -> str | None:
    """The one place that all values share, of samples of one shape with more than one value."""
    shape = held[0].shape
    if column.reduced or not shape or held[0].numel() < 2 or any(value.shape != shape for value in held):
        return None
    anywhere = torch.stack([~value.isfinite() for value in held])
    place = anywhere.any(0).nonzero()
    if len(place) != 1 or len(held) < 2:
        return None
    indices = place[0].tolist()
    return str(indices[0]) if len(indices) == 1 else str(indices)


def is_left_out(
    spoiled: Spoiled, rows: Rows, target: Target, sandbox: Sandbox, batch: Any, step: TrainingStep
) -> bool:
    """Whether loss and gradients stay finite although a sample has such values.

    Where the first batch of the training data has some, its traced step tells. Otherwise the step runs on a few
    of its rows into which the values were put.
    """
    if rows.split == "train" and spoiled.samples[0] < rows.batch_sizes[0]:
        norms = [gradient.norm for gradient in step.gradients.values() if gradient.norm is not None]
        return math.isfinite(step.loss) and all(map(math.isfinite, norms))
    tried = _with_values(batch, spoiled)
    if tried is None or not math.isfinite(step.loss):
        return False
    with sandbox.probe():
        if not sandbox.training[""]:
            target.model.train()
        try:
            loss = run_step(target, tried).loss
            if loss.requires_grad and all(p.grad is None for p in target.model.parameters()):
                (loss if loss.numel() == 1 else loss.mean()).backward()
        except (Broken, RuntimeError):
            return False
        found = [
            gradient.norm for gradient in gradients_of(target.model).values() if gradient.norm is not None
        ]
    return bool(loss.isfinite().all()) and all(map(math.isfinite, found))


def _with_values(batch: Any, spoiled: Spoiled) -> Any:
    """A few rows of a batch, with the values of a spoiled sample in the first; ``None`` where the key is not there."""
    value = spoiled.column.values[[*spoiled.column.samples].index(spoiled.samples[0])]
    if sliceable(batch):
        batch = take(batch, range(min(_TRIED_ROWS, len(next(iter(tensors(batch)))[1]))))
    found = [tensor for path, tensor in tensors(batch) if path == spoiled.column.path]
    if not found or spoiled.column.reduced or found[0].ndim < 1 or found[0].shape[1:] != value.shape:
        return None
    changed = found[0].detach().clone()
    bad = ~value.isfinite()
    changed[0][bad] = value[bad].to(changed)
    return map_tensors(batch, lambda tensor: changed if tensor is found[0] else tensor)
