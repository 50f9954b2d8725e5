"""The classes that the model can predict: how many outputs compete, and which labels the loss takes them for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from debugkit.data.batch import fresh, size, sliceable, split, take
from debugkit.data.labels import IGNORED
from debugkit.data.rows import Column
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.losses import LossCall
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.program import Program, call_model, primary_output
from debugkit.tracing.trace import record

_INDEXED = ("cross_entropy", "nll_loss", "multi_margin_loss")
_MODULES = (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss, torch.nn.MultiMarginLoss)
_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_KINDS = ("classes", "tags", "pixels", "values")
_ROWS = 8


@dataclass(frozen=True)
class ClassOutputs:
    """Outputs of which one is right for each label.

    Attributes:
        count: how many outputs there are; a label must be at least 0 and below.
        path: where the batches hold the labels.
        added: what the step adds to a label before the loss takes it.
        ignored: labels that do not count.
        loss: the loss that takes them, such as ``cross_entropy``.
        location: the user's source line of the loss.
        ran: whether the step ran on the whole first batch.
    """

    cost: ClassVar[Cost] = "forward"
    count: int
    path: str
    added: int
    ignored: frozenset[int]
    loss: str
    location: str | None
    ran: bool

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, samples: Samples, batches: Batches, step: TrainingStep | None
    ) -> ClassOutputs:
        """Read the traced step; where it raised, run it on rows with small labels, or the model without labels.

        Raises:
            Unavailable: no loss takes the labels as numbers of classes, as far as can be seen.
        """
        if step is not None:
            calls = [call for call in step.loss_calls if call.connected or not step.has_graph]
            return _from_calls(calls, samples)
        return _from_rows(target, sandbox, samples, batches) or _from_model(target, sandbox, samples, batches)


def _from_calls(calls: Sequence[LossCall], samples: Samples) -> ClassOutputs:
    found = [outputs for call in calls if call.name in _INDEXED for outputs in _matched(call, samples)]
    if not found:
        raise Unavailable("no loss of the step was seen to take labels of the batch as numbers of classes")
    if len({(one.count, one.path) for one in found}) > 1:
        raise Unavailable("several losses of the step take classes, from outputs of different width")
    return found[0]


def _from_rows(target: Target, sandbox: Sandbox, samples: Samples, batches: Batches) -> ClassOutputs | None:
    """The step on the few rows of the first batch whose labels are smallest, which may run where the whole does not."""
    batch, rows = batches.first, samples.rows.batch_sizes[0]
    columns = [column for column in samples.rows.labels if is_whole(column)]
    if len(columns) != 1 or samples.labels.kind not in _KINDS or not sliceable(batch) or size(batch) != rows:
        return None
    column = columns[0]
    lows, highs = column.minimum[:rows], column.maximum[:rows]
    fitting = [row for row in np.argsort(highs, kind="stable").tolist() if lows[row] >= 0][:_ROWS]
    if len(fitting) < 2 or list(column.samples[:rows]) != list(range(rows)):
        return None
    with sandbox.probe(), record(target.model) as recorder:
        try:
            run_step(target, take(batch, fitting))
        except Broken:
            return None
    calls = [call for call in recorder.loss_calls if call.name in _INDEXED and call.target is not None]
    if len({call.input.shape[call.class_dim] for call in calls}) != 1:
        return None
    call = calls[0]
    exact = call.target is not None and call.target.maximum == float(highs[fitting].max())
    if not exact or call.target is None or call.target.minimum != float(lows[fitting].min()):
        return None
    ignored = frozenset({call.ignore_index if call.ignore_index is not None else IGNORED})
    count = call.input.shape[call.class_dim]
    return ClassOutputs(count, column.path, 0, ignored, call.name, call.location, False)


def _matched(call: LossCall, samples: Samples) -> Iterator[ClassOutputs]:
    """The labels that a call was given: the column of the same size and range in the first batch."""
    if call.target is None or call.target.dtype.startswith(("float", "bfloat")):
        return
    ignored = frozenset({call.ignore_index if call.ignore_index is not None else IGNORED})
    labels = [column for column in samples.rows.labels if is_whole(column)]
    matches = [(column, added) for column in labels if (added := _added(call, column, samples)) is not None]
    if not matches and samples.origin != "given":
        others = [column for column in samples.rows.inputs if is_whole(column)]
        matches = [(column, 0) for column in others if _added(call, column, samples) == 0]
    if len(matches) == 1:
        column, added = matches[0]
        count = call.input.shape[call.class_dim]
        yield ClassOutputs(count, column.path, added, ignored, call.name, call.location, True)


def is_whole(column: Column) -> bool:
    """Whether values are whole numbers, in floats too."""
    return not column.is_floating or bool(
        (column.minimum == column.minimum.round()).all() and (column.maximum == column.maximum.round()).all()
    )


def _added(call: LossCall, column: Column, samples: Samples) -> int | None:
    """What was added to a column's first batch to give the targets of a call; ``None`` where it is another one."""
    assert call.target is not None
    rows = samples.rows.batch_sizes[0]
    if list(column.samples[:rows]) != list(range(rows)):
        return None
    numel = sum(value.numel() for value in column.values[:rows])
    targets = 1
    for side in call.target.shape:
        targets *= side
    low, high = float(column.minimum[:rows].min()), float(column.maximum[:rows].max())
    if targets != numel:
        return None
    by_low, by_high = call.target.minimum - low, call.target.maximum - high
    if by_low == by_high:
        return int(by_low)
    sampled = call.target.rows < targets and len(call.target.shape) > 0
    return 0 if sampled and by_low >= 0 >= by_high else None


def _from_model(target: Target, sandbox: Sandbox, samples: Samples, batches: Batches) -> ClassOutputs:
    loss = _declared_loss(target)
    columns = [column for column in samples.rows.labels if is_whole(column)]
    if loss is None or len(columns) != 1:
        raise Unavailable(
            "the training step does not run, so the outputs that it compares with labels are not known"
        )
    outputs = outputs_alone(target, sandbox, batches.first)
    column = columns[0]
    shape = next(iter(column.shapes))
    name, ignored = loss
    if outputs.ndim < 2:
        raise Unavailable("the model gives one number per sample, no scores of classes")
    by_channel = target.loss_fn is not None and outputs.ndim > 2
    count = outputs.shape[1] if by_channel or outputs.ndim == 2 else outputs.shape[-1]
    if samples.labels.kind not in ("classes", "tags", "pixels", "values") or (
        len(shape) > 1 and outputs.ndim == 2
    ):
        raise Unavailable("the labels are no classes to choose from")
    return ClassOutputs(count, column.path, 0, frozenset({ignored}), name, None, False)


def outputs_alone(target: Target, sandbox: Sandbox, batch: Any) -> torch.Tensor:
    """The model's main output for up to eight inputs of a batch, without their labels.

    Raises:
        Unavailable: the model does not run on the inputs alone.
    """
    rows = size(batch) or 1
    batch = take(batch, range(min(rows, _ROWS))) if sliceable(batch) else batch
    with sandbox.probe(), torch.no_grad(), Program(target).precision():
        target.model.eval()
        try:
            outputs = primary_output(call_model(target.model, fresh(split(batch)[0], target.device)))
        except Exception as error:
            raise Unavailable(
                f"the model does not run on the inputs alone: {type(error).__name__}"
            ) from error
    if not isinstance(outputs, torch.Tensor):
        raise Unavailable("the model's outputs are not known for a tensor of scores")
    return outputs.detach()


def _declared_loss(target: Target) -> tuple[str, int] | None:
    """The class loss that a target names, and the label that it ignores."""
    loss = target.loss_fn
    if isinstance(loss, _MODULES):
        name = {"CrossEntropyLoss": "cross_entropy", "NLLLoss": "nll_loss"}.get(
            type(loss).__name__, "multi_margin_loss"
        )
        return name, int(getattr(loss, "ignore_index", IGNORED))
    if loss in _FUNCTIONS:
        return str(getattr(loss, "__name__", "cross_entropy")), IGNORED
    width = getattr(getattr(target.model, "config", None), "num_labels", None)
    return ("cross_entropy", IGNORED) if loss is None and isinstance(width, int) and width > 1 else None
