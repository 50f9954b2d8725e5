"""Targets that are the input itself: does the model see each step when it has to give it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from debugkit.data.batch import fresh, sliceable, take, tensors
from debugkit.data.rows import Rows
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.program import Program, primary_output

_ROWS = 2
_FEWEST_STEPS = 4


@dataclass(frozen=True)
class Echo:
    """Which steps of the input the output for one step depends on, where the targets are the input.

    Attributes:
        path: the input.
        step: the step that was looked at, in the middle.
        past: whether its output depends on earlier steps.
        present: whether it depends on the step itself.
        future: whether it depends on later steps, as it does behind a bottleneck over the whole series.
    """

    cost: ClassVar[Cost] = "forward"
    path: str
    step: int
    past: bool
    present: bool
    future: bool

    @property
    def copies(self) -> bool:
        """Whether the model goes through the series step by step, and copying each step is all it has to learn."""
        return self.present and self.past and not self.future

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, samples: Samples, step: TrainingStep) -> Echo:
        """Differentiate one step of the output with respect to the input, on two rows.

        Raises:
            Unavailable: the targets are no input of several steps, or the model can't be called on it alone.
        """
        path = _copied_series(samples.rows)
        if path is None:
            raise Unavailable("the targets are not the whole of an input with several steps")
        if step.root_call is None:
            raise Unavailable("the training step calls parts of the model, never the model as a whole")
        call: Any = step.root_call
        if not sliceable([t for _, t in tensors(call)]):
            raise Unavailable("the model's inputs can't be cut to a few rows")
        with sandbox.probe(), Program(target).precision():
            args, kwargs = fresh(take(call, range(_ROWS)), target.device)
            length = next(iter(samples.rows.columns[path].shapes))[0]
            series = [t for _, t in tensors([args, kwargs]) if _is_series(t, length)]
            if len(series) != 1:
                raise Unavailable("it is not clear which of the model's inputs is the series")
            given = series[0].requires_grad_()
            try:
                outputs = primary_output(target.model(*args, **kwargs))
                return _look(outputs, given, path)
            except (RuntimeError, TypeError, ValueError) as error:
                raise Unavailable(
                    f"the output could not be differentiated: {type(error).__name__}"
                ) from error


def _copied_series(rows: Rows) -> str | None:
    """The path of a floating input of several steps that equals the labels in every sample."""
    labels = rows.labels[0] if len(rows.labels) == 1 else None
    if labels is None or not labels.is_floating or len(labels.shapes) != 1:
        return None
    shape = next(iter(labels.shapes))
    if not 1 <= len(shape) <= 2 or shape[0] < _FEWEST_STEPS:
        return None
    same = [c for c in rows.inputs if c.shapes == labels.shapes and c.digests == labels.digests]
    return same[0].path if len(same) == 1 else None


def _is_series(tensor: torch.Tensor, length: int) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.shape[1] == length


def _look(outputs: Any, given: torch.Tensor, path: str) -> Echo:
    length = given.shape[1]
    if not isinstance(outputs, torch.Tensor) or outputs.shape[:2] != given.shape[:2]:
        raise Unavailable("the model does not give one output per step")
    middle = length // 2
    picked = outputs[:, middle].float()
    weights = torch.linspace(0.5, 1.5, picked.numel(), device=picked.device).reshape(picked.shape)
    (gradient,) = torch.autograd.grad((picked * weights).sum(), given, allow_unused=True)
    if gradient is None:
        return Echo(path, middle, False, False, False)
    moved = gradient.abs().transpose(0, 1).flatten(1).amax(1) > 0
    return Echo(
        path, middle, bool(moved[:middle].any()), bool(moved[middle]), bool(moved[middle + 1 :].any())
    )
