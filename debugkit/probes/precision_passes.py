"""One step in the precision that training uses, and the same in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from debugkit.data.batch import map_tensors, size, sliceable, take, tensors
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.eval_passes import SAMPLING
from debugkit.probes.training_step import TrainingStep, backward, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.dropout import NoDropout
from debugkit.tracing.numerics import Draws, Reading, readings_of, rounded, without_autocast

_LOW = (torch.float16, torch.bfloat16)
_LARGEST = 2**28
_GRADIENT_BYTES = 2**27
_DOUBTFUL = 0.95
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class ConfiguredPrecision:
    """The low precision that training uses.

    Attributes:
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        by_weights: whether the weights themselves are in it; training autocasts else.
    """

    cost: ClassVar[Cost] = "static"
    dtype: torch.dtype
    by_weights: bool

    @staticmethod
    def collect(target: Target) -> ConfiguredPrecision:
        """Read the target's precision, and the dtype of most trainable weights.

        Raises:
            Unavailable: training is in full precision.
        """
        if (dtype := target.autocast_dtype) in _LOW:
            return ConfiguredPrecision(dtype, by_weights=False)
        counts: dict[torch.dtype, int] = {}
        for parameter in target.model.parameters():
            if parameter.requires_grad and not torch.nn.parameter.is_lazy(parameter):
                counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
        most = max(counts, key=lambda key: counts[key], default=None)
        if most in _LOW:
            return ConfiguredPrecision(most, by_weights=True)
        raise Unavailable('training is in float32; pass Target(precision="bf16") if it autocasts')


@dataclass(frozen=True, eq=False)
class PrecisionPasses:
    """The step on two rows in low precision and in float32, without dropout.

    Attributes:
        dtype: the low precision.
        rows: how many samples the passes took.
        outputs: cosine between the outputs around their mean; ``None`` where it can't be told.
        gradients: cosine between the gradients; ``None`` where it can't be told.
        nudged_outputs: the cosine in float32 after weights, inputs and the modules' outputs were moved by the
            rounding of the low precision; ``None`` where it was not needed.
        nudged_gradients: the same for the gradients.
        low: per module, in order, what it gave in low precision.
        full: the same in float32.
        losses: the loss in low precision and in float32.
        samples: whether the step draws random numbers, which differ between precisions.
    """

    cost: ClassVar[Cost] = "backward"
    dtype: torch.dtype
    rows: int
    outputs: float | None
    gradients: float | None
    nudged_outputs: float | None
    nudged_gradients: float | None
    low: Mapping[str, Reading] = field(repr=False)
    full: Mapping[str, Reading] = field(repr=False)
    losses: tuple[float, float]
    samples: bool

    @staticmethod
    def collect(
        configured: ConfiguredPrecision,
        target: Target,
        sandbox: Sandbox,
        batches: Batches,
        step: TrainingStep,
    ) -> PrecisionPasses:
        """Run the step twice; a third time only where the directions differ.

        Raises:
            Unavailable: the step does not run in float32, or the weights are too large for a copy in it.
        """
        if configured.by_weights and sum(p.nbytes for p in target.model.parameters()) > _LARGEST:
            raise Unavailable("the weights are too large for a copy in float32")
        if not step.has_graph or step.own_backward:
            raise Unavailable("the step gives no loss with a graph to compare the gradients of")
        runner = _Runner(target, sandbox, configured, _two_rows(batches.first))
        try:
            low, full = runner.low(), runner.full()
            outputs, gradients = _compare(low, full)
            doubtful = any(value is not None and value < _DOUBTFUL for value in (outputs, gradients))
            nudged = (
                _compare(runner.full(nudged=True), full) if doubtful and not full.samples else (None, None)
            )
        except Broken as error:
            raise Unavailable(f"the step does not run in both precisions ({error})") from error
        return PrecisionPasses(
            configured.dtype,
            size(runner.part) or 1,
            outputs,
            gradients,
            *nudged,
            low=low.readings,
            full=full.readings,
            losses=(low.loss, full.loss),
            samples=low.samples or full.samples,
        )


@dataclass
class _Pass:
    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    readings: dict[str, Reading]
    loss: float
    samples: bool


class _Runner:
    def __init__(self, target: Target, sandbox: Sandbox, configured: ConfiguredPrecision, part: Any) -> None:
        self._target, self._sandbox, self._configured = target, sandbox, configured
        self.part = part

    def low(self) -> _Pass:
        """The step as training runs it."""
        scale = _LOSS_SCALE if self._configured.dtype is torch.float16 else 1.0
        with self._sandbox.probe():
            return self._run(self._target, self.part, scale)

    def full(self, *, nudged: bool = False) -> _Pass:
        """The step in float32; with values moved by the low precision's rounding on request."""
        target = replace(self._target, precision="fp32")
        part = self.part
        with self._sandbox.probe(), without_autocast(target.model, target.device.type):
            if self._configured.by_weights:
                target.model.float()
                part = map_tensors(part, lambda t: t.float() if t.is_floating_point() else t)
            if nudged:
                part = self._nudge(part)
            with rounded(target.model, self._configured.dtype) if nudged else nullcontext():
                return self._run(target, part, 1.0)

    @torch.no_grad()
    def _nudge(self, part: Any) -> Any:
        eps = torch.finfo(self._configured.dtype).eps
        for parameter in self._target.model.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + eps * (torch.rand_like(parameter) - 0.5))
        return map_tensors(
            part, lambda t: t * (1 + eps * (torch.rand_like(t) - 0.5)) if t.is_floating_point() else t
        )

    def _run(self, target: Target, part: Any, scale: float) -> _Pass:
        model = target.model
        if not self._sandbox.training[""]:
            model.train()
        with Draws(SAMPLING) as draws, NoDropout(), readings_of(model) as readings:
            outcome = run_step(target, part)
        backward(outcome.loss * scale)
        outputs = [
            t.detach().float() for _, t in tensors(outcome.outputs) if t.is_floating_point() and t.numel() > 1
        ]
        gradients: dict[str, torch.Tensor] = {}
        room = _GRADIENT_BYTES
        for name, parameter in model.named_parameters():
            if parameter.grad is None or parameter.grad.layout is not torch.strided:
                continue
            if (room := room - parameter.grad.nbytes) < 0:
                break
            gradients[name] = parameter.grad
        return _Pass(outputs, gradients, readings, float(outcome.loss.detach().float().mean()), draws.seen)


def _two_rows(batch: Any) -> Any:
    return take(batch, range(2)) if sliceable(batch) and (size(batch) or 0) > 2 else batch


def _compare(one: _Pass, full: _Pass) -> tuple[float | None, float | None]:
    outputs = [
        _cosine([(a - b.mean(), b - b.mean())])
        for a, b in zip(one.outputs, full.outputs, strict=False)
        if a.shape == b.shape and float(b.std(correction=0)) > 1e-3 * float(b.abs().mean())
    ]
    shared = [name for name in full.gradients if name in one.gradients]
    pairs = [(one.gradients[name].float(), full.gradients[name].float()) for name in shared]
    known = [value for value in outputs if value is not None]
    return min(known, default=None), _cosine(pairs)


def _cosine(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """The cosine between two vectors, given in parts; ``None`` where one is zero or not finite."""
    dot = first = second = 0.0
    for one, other in pairs:
        dot += float((one.double() * other.double()).sum())
        first += float(one.double().square().sum())
        second += float(other.double().square().sum())
    size = math.sqrt(first) * math.sqrt(second)
    return dot / size if 0 < size < math.inf and math.isfinite(dot) else None
