"""Custom autograd functions: the gradient that ``backward`` gives against differences of ``forward``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.custom_calls import CustomCall, custom_calls
from debugkit.tracing.source import shorten
from debugkit.trials.directions import compare

Verdict = Literal[
    "right", "wrong", "ignores", "scaled", "surrogate", "shaped", "identity", "random", "unjudged"
]


@dataclass(frozen=True)
class FunctionGradient:
    """The gradient of one function.

    Attributes:
        name: the class.
        location: where its ``backward`` is written.
        verdict: ``right``; ``wrong``; ``ignores`` what came back from the loss; ``scaled``: the true gradient times a
            constant; ``surrogate``: what is flat or has steps gets a gradient of its own, as a straight-through
            estimator does; ``shaped``: not linear in what comes back, such as clipping; ``identity``: ``forward``
            changes nothing; ``random``; or ``unjudged``.
        input: the number of the argument that the verdict is about.
        error: the largest difference over the size of the gradient.
        factor: the constant, where it is scaled.
        reason: why it was not judged.
    """

    name: str
    location: str | None
    verdict: Verdict
    input: int = 0
    error: float = 0.0
    factor: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class CustomBackward:
    """The gradients of the user's own autograd functions.

    Attributes:
        functions: one per class, at its first call.
    """

    cost: ClassVar[Cost] = "backward"
    functions: tuple[FunctionGradient, ...]

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep) -> CustomBackward:
        """One forward pass to see what the functions are given; then each is tested alone.

        Raises:
            Unavailable: no custom function of the user's own is in the graph.
        """
        if not step.custom_functions:
            raise Unavailable("no custom autograd function lies on the way to the loss")
        with sandbox.probe():
            if not sandbox.training[""]:
                target.model.train()
            with custom_calls() as calls:
                run_step(target, batches.first)
            found = tuple(_judge(call) for call in calls if call.function.__name__ in step.custom_functions)
        if not found:
            raise Unavailable("the custom autograd functions are those of installed packages")
        return CustomBackward(found)


def _judge(call: CustomCall) -> FunctionGradient:
    name, location = call.function.__name__, _place(call.function)
    if call.args is None:
        return FunctionGradient(name, location, "unjudged", reason="its inputs are too large")
    reason = ""
    for dtype in (torch.float64, torch.float32):
        try:
            with torch.random.fork_rng(devices=[]):
                verdict, position, error, factor = compare(call.function.apply, call.args, dtype)
        except Exception as problem:  # the user's program may refuse a precision in any way
            reason = reason or f"it raised `{type(problem).__name__}` when called alone"
            continue
        return FunctionGradient(name, location, verdict, position, error, factor)  # type: ignore[arg-type]
    return FunctionGradient(name, location, "unjudged", reason=reason)


def _place(function: Any) -> str | None:
    backward: Any = getattr(function, "backward", None)
    while hasattr(backward, "__wrapped__"):
        backward = backward.__wrapped__
    code = getattr(backward, "__code__", None)
    return f"{shorten(code.co_filename)}:{code.co_firstlineno}" if code is not None else None
