"""Targets that a loss has no meaning for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from debugkit import Finding, Target, fail
from debugkit.data.rows import Column
from debugkit.loss.losses import Facts, LossCall
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep

_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
_SIGNS = ("soft_margin_loss", "hinge_embedding_loss")
_SLACK = 1e-6
_ROWS = 8


def meaningless(samples: Samples, step: TrainingStep) -> Iterator[Finding]:
    """Targets outside [0, 1] for a binary loss, and others than -1 and 1 for a margin."""
    judged = set()
    for call in step.loss_calls:
        if call.target is None or not call.connected or call.name in judged:
            continue
        if call.name in _BINARY and (finding := _outside(samples, call, call.target)):
            judged.add(call.name)
            yield finding
        elif call.name in _SIGNS and _no_signs(call.target):
            judged.add(call.name)
            yield fail(
                f"`{call.name}` takes targets -1 and 1 and was given {call.target.minimum:g} to {call.target.maximum:g}: a "
                "target of 0 has the same loss whatever the model says",
                location=call.location,
                hint="pass `2 * y - 1` as targets, or use `binary_cross_entropy_with_logits` for 0 and 1",
                smallest=call.target.minimum,
                largest=call.target.maximum,
            )


def _outside(samples: Samples, call: LossCall, facts: Facts) -> Finding | None:
    low, high, where = facts.minimum, facts.maximum, None
    column = _column(samples, facts)
    if column is not None and any(column.digests == other.digests for other in samples.rows.inputs):
        return None
    if column is not None:
        finite = column.minimum[np.isfinite(column.minimum)], column.maximum[np.isfinite(column.maximum)]
        low, high = min(low, float(finite[0].min())), max(high, float(finite[1].max()))
        odd = np.flatnonzero((column.minimum < -_SLACK) | (column.maximum > 1 + _SLACK))
        where = samples.rows.name(column.samples[int(odd[0])]) if len(odd) else None
    if low >= -_SLACK and high <= 1 + _SLACK:
        return None
    return fail(
        f"`{call.name}` takes targets from 0 to 1 and gets {low:g} to {high:g}: the loss has no lower bound and drives the "
        "outputs to infinity",
        where=where,
        location=call.location,
        hint="number two classes 0 and 1; for more classes use `cross_entropy` with one output each",
        smallest=low,
        largest=high,
    )


def _column(samples: Samples, facts: Facts) -> Column | None:
    """The labels that a call was given as they are, by the size and range of the first batch."""
    rows = samples.rows.batch_sizes[0] if samples.rows.batch_sizes else 0
    for column in samples.rows.labels:
        if len(column.values) < rows or column.reduced:
            continue
        numel = sum(value.numel() for value in column.values[:rows])
        low, high = float(column.minimum[:rows].min()), float(column.maximum[:rows].max())
        if numel == int(np.prod(facts.shape)) and (low, high) == (facts.minimum, facts.maximum):
            return column
    return None


def _no_signs(facts: Facts) -> bool:
    return any(abs(abs(value) - 1) > _SLACK for value in (facts.minimum, facts.maximum))


def refused_type(samples: Samples, target: Target, outputs: int) -> Finding | None:
    """Class numbers in a type that the loss does not take: shown by calling the loss alone on made-up scores."""
    column = next((c for c in samples.rows.labels if all(s in ((), (1,)) for s in c.shapes)), None)
    if column is None or target.loss_fn is None or samples.labels.kind not in ("classes", "values"):
        return None
    labels = torch.stack([value.reshape(()) for value in column.values[:_ROWS]])
    scores = torch.zeros(len(labels), outputs)
    if _raises(target, scores, labels) and not _raises(target, scores, labels.long().clamp(0, outputs - 1)):
        dtype = str(labels.dtype).removeprefix("torch.")
        return fail(
            f"the labels are class numbers in {dtype}, which the loss refuses; it takes them in int64",
            where=samples.rows.name(column.samples[0], column.path),
            hint="pass `labels.long()`",
            dtype=dtype,
        )
    return None


def _raises(target: Target, scores: torch.Tensor, labels: torch.Tensor) -> bool:
    assert target.loss_fn is not None
    try:
        target.loss_fn(scores.to(target.device), labels.to(target.device))
    except Exception:  # a loss may refuse its targets in any way
        return True
    return False
