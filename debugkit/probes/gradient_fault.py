"""Where a gradient that is NaN or infinite first appears in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, backward, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.graph import Node, ancestors, op_name
from debugkit.tracing.source import user_location
from debugkit.tracing.trace import Recorder, record


@dataclass(frozen=True)
class GradientFault:
    """The first operation whose backward turns finite gradients into NaN or infinity.

    Attributes:
        parameters: names of the parameters whose gradient is not finite.
        op: the operation; ``None`` where it was not found.
        location: the user's source line that called it.
        module: the module in whose forward it ran.
    """

    cost: ClassVar[Cost] = "backward"
    parameters: tuple[str, ...]
    op: str | None = None
    location: str | None = None
    module: str | None = None

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep) -> GradientFault:
        """Run the step again with a look at every node of its graph.

        Raises:
            Unavailable: every gradient is finite, or the loss itself is not.
        """
        lost = tuple(
            name
            for name, gradient in step.gradients.items()
            if gradient.largest is not None and not math.isfinite(gradient.largest)
        )
        if not lost or not math.isfinite(step.loss):
            raise Unavailable("every gradient is finite" if not lost else "the loss is not finite")
        with sandbox.probe():
            if not sandbox.training[""]:
                target.model.train()
            with record(target.model) as recorder, _Places(recorder) as places:
                outcome = run_step(target, batches.first)
                if not places.differentiated and outcome.loss.requires_grad:
                    backward(outcome.loss)
            return GradientFault(lost, *places.fault) if places.fault else GradientFault(lost)


class _Places(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.fault: tuple[str, str | None, str | None] | None = None
        self.differentiated = False
        self._recorder = recorder
        self._places: dict[Node, tuple[str, str | None, str | None]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.backward:
            self.differentiated = True
            for node in list(ancestors([args[0].grad_fn])):
                if hasattr(node, "register_hook") and not hasattr(node, "variable"):
                    node.register_hook(self._look(node))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.grad_fn is not None:
            name = getattr(func, "__name__", "")
            if result.grad_fn not in self._places:
                place = (name, user_location(outer=True), self._recorder.module)
                self._places[result.grad_fn] = place
        return result

    def _look(self, node: Node) -> Any:
        def see(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            if self.fault is None and _finite(outputs) and not _finite(inputs):
                self.fault = self._places.get(node) or (op_name(node), None, None)

        return see


def _finite(gradients: tuple[Any, ...]) -> bool:
    return all(
        bool(gradient.isfinite().all())
        for gradient in gradients
        if isinstance(gradient, torch.Tensor) and gradient.layout is torch.strided
    )
