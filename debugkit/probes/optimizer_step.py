"""One real step of the user's optimizer, measured tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from debugkit.data.batch import size, sliceable, take, to_device
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.optimizer_parameters import OptimizerParameters, parameters_of
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal
from debugkit.probes.training_step import TrainingStep, backward, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.trials.stepper import Stepper
from debugkit.trials.trial import RefusedError

_LOW = (torch.float16, torch.bfloat16)
_REPEATS = 200
_GROWING = 1.5


@dataclass(frozen=True)
class Move:
    """What one step does to a tensor that the optimizer holds.

    Attributes:
        group: its parameter group.
        rate: the learning rate of the step, the highest that the schedule plans.
        shape: the tensor's shape.
        dtype: its dtype.
        trainable: whether it has ``requires_grad``.
        hooked: whether a hook edits its gradient.
        weight: its root mean square.
        gradient: that of its gradient; ``None`` where there is none.
        update: that of its change; in low precision, of the change that the same step makes in single precision.
        asked: where it does not move at all, the size of the update that the optimizer asks for, which rounds away; 0
            where it skips the tensor.
        clipped: that of its change with all gradients clipped to a norm of 1 together.
        finite: whether its values are finite after the step.
        wanted: in low precision, how many values the same step moves in single precision.
        lost: how many of them it does not move here, at the size that steps have once momentum has built up.
    """

    group: int
    rate: float
    shape: tuple[int, ...]
    dtype: torch.dtype
    trainable: bool
    hooked: bool
    weight: float
    gradient: float | None
    update: float
    asked: float
    clipped: float
    finite: bool
    wanted: int = 0
    lost: int = 0

    @property
    def alive(self) -> bool:
        """Whether some value of its gradient is not zero."""
        return bool(self.gradient)

    @property
    def ratio(self) -> float:
        """Size of the update over size of the weights; 0 for weights that are all zero."""
        return self.update / self.weight if self.weight else 0.0

    @property
    def clipped_ratio(self) -> float:
        """The same for a clipped step."""
        return self.clipped / self.weight if self.weight else 0.0


@dataclass(frozen=True)
class OptimizerStep:
    """One forward, backward and step on a few rows, each tensor stepped on a copy.

    Attributes:
        moves: per tensor of the model or the loss that the optimizer holds, by name.
        gradient_norm: the norm of all gradients together.
        touched: frozen parameters that the forward pass wrote to.
        loss_gradients: names of the loss's own parameters that get a gradient.
        regained: whether values that one step can't move in low precision do move after several, since the optimizer
            keeps what was lost.
    """

    cost: ClassVar[Cost] = "backward"
    moves: Mapping[str, Move] = field(repr=False)
    gradient_norm: float
    touched: tuple[str, ...]
    loss_gradients: frozenset[str]
    regained: bool

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        batches: Batches,
        step: TrainingStep,
        held: OptimizerParameters,
        schedule: ScheduleRehearsal,
        *,
        rows: Annotated[int, Field(ge=1, description="rows of the batch that the step sees")] = 4,
    ) -> OptimizerStep:
        """Take the step.

        Raises:
            Unavailable: no gradient reaches a parameter, or the optimizer can't be stepped tensor by tensor.
            Broken: the user's step raised.
        """
        if step.is_cut_off:
            raise Unavailable("the loss leads to no parameter at all; see `loss-connected`")
        named = dict(parameters_of(target))
        leftovers = {name: named[name].grad for name in held.frozen}
        hooked = {name for name, p in named.items() if p._backward_hooks}
        frozen = {name: p for name, p in named.items() if not p.requires_grad and not p.is_inference()}
        with sandbox.probe():
            try:
                stepper = Stepper(target.optimizer, schedule.peaks)
                if not sandbox.training[""]:
                    target.model.train()
                versions = {name: p._version for name, p in frozen.items()}
                _differentiate(target, batches.first, rows)
                touched = tuple(name for name, p in frozen.items() if p._version != versions[name])
                norm = _norm(named.values())
                measure = _Measure(stepper, schedule.peaks, min(1.0, 1.0 / norm) if norm else 1.0)
                moves = {}
                for name, group in held.groups.items():
                    parameter = named[name]
                    gradient = parameter.grad if parameter.requires_grad else _zeros_left(leftovers.get(name))
                    if _is_measurable(parameter, gradient):
                        moves[name] = measure(parameter, gradient, group, name in hooked)
                gained = frozenset(
                    name for name, p in named.items() if name.startswith("loss_fn.") and _has_gradient(p)
                )
                regained = measure.settle(named, moves)
            except RefusedError as error:
                raise Unavailable(f"the optimizer can't be stepped tensor by tensor: {error}") from None
        return OptimizerStep(moves, norm, touched, gained, regained)


class _Measure:
    def __init__(self, stepper: Stepper, rates: tuple[float, ...], scale: float) -> None:
        self._stepper, self._rates, self._scale = stepper, rates, scale

    def __call__(
        self, parameter: torch.nn.Parameter, gradient: torch.Tensor | None, group: int, hooked: bool
    ) -> Move:
        before = parameter.detach()
        after = self._stepper.step(group, before, gradient, of=parameter)
        start, slope, exact = before, gradient, after
        wanted = lost = 0
        if before.dtype in _LOW:
            start, slope = before.float(), _single(gradient)
            exact = self._stepper.step(group, start, slope, of=parameter)
            wants = exact != start
            wanted = int(wants.sum())
            lost = int((wants & (after == before)).sum())
        clipped = asked = update = _rms(exact - start)
        if slope is not None and not update:
            asked = _rms(self._stepper.step(group, torch.zeros_like(start), slope, of=parameter))
        if slope is not None and self._scale < 1 and update:
            clipped = _rms(self._stepper.step(group, start, slope * self._scale, of=parameter) - start)
        return Move(
            group=group,
            rate=self._rates[group],
            shape=tuple(parameter.shape),
            dtype=parameter.dtype,
            trainable=parameter.requires_grad,
            hooked=hooked,
            weight=_rms(before),
            gradient=None if gradient is None else _rms(gradient),
            update=update,
            asked=asked,
            clipped=clipped,
            finite=bool(torch.isfinite(after).all()),
            wanted=wanted,
            lost=lost,
        )

    def settle(self, named: Mapping[str, torch.nn.Parameter], moves: dict[str, Move]) -> bool:
        """Look again at what rounds away: at the size of later steps, and at whether the optimizer keeps what was lost.

        Momentum makes later steps larger than the first, so that less of them is lost.

        Returns:
            Whether values that no single step can move do move after several.
        """
        lossy = [
            (move.wanted, name)
            for name, move in moves.items()
            if move.lost > move.wanted / 5 and named[name].grad is not None
        ]
        if not lossy:
            return False
        name = min(lossy)[1]
        parameter, group = named[name], moves[name].group
        before, slope = parameter.detach(), _single(parameter.grad)
        start = before.float()
        one, most, all_but_one = (
            self._stepper.step(group, start, slope, of=parameter, steps=steps)
            for steps in (1, _REPEATS, _REPEATS - 1)
        )
        growth = _rms(most - all_but_one) / max(_rms(one - start), 1e-30)
        if growth > _GROWING:
            for _, other in lossy:
                moves[other] = self._grown(named[other], moves[other], growth)
        spacing = torch.finfo(before.dtype).eps * torch.exp2(start.abs().clamp_min(1e-30).log2().floor())
        visible = ((most - start).abs() > spacing) & ((most - all_but_one).abs() < 0.2 * spacing)
        moved = self._stepper.step(group, before, parameter.grad, of=parameter, steps=_REPEATS) != before
        return int(visible.sum()) > 0 and int((visible & moved).sum()) > int(visible.sum()) / 2

    def _grown(self, parameter: torch.nn.Parameter, move: Move, growth: float) -> Move:
        before = parameter.detach()
        start = before.float()
        change = self._stepper.step(move.group, start, _single(parameter.grad), of=parameter) - start
        return replace(
            move, lost=int(((change != 0) & ((start + growth * change).to(before.dtype) == before)).sum())
        )


def _single(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.float()


def _differentiate(target: Target, batch: Any, rows: int) -> None:
    """Gradients of a few rows; of the whole batch where it can't be cut, or a few rows give no loss."""
    count = size(batch) or 0
    if count > rows and sliceable(batch):
        try:
            loss = run_step(target, to_device(take(batch, range(rows)), target.device)).loss
        except Broken:
            pass
        else:
            if _is_finite(loss):
                _backward(target, loss)
                return
        for parameter in target.model.parameters():
            parameter.grad = None
    loss = run_step(target, batch).loss
    if not _is_finite(loss):
        raise Unavailable("the loss is not finite, so no step can be taken from it")
    _backward(target, loss)


def _backward(target: Target, loss: torch.Tensor) -> None:
    if any(p.grad is not None for p in target.model.parameters()):
        return
    if not loss.requires_grad:
        raise Unavailable("the loss has no graph; see `loss-connected`")
    backward(loss)


def _is_finite(loss: torch.Tensor) -> bool:
    return bool(torch.isfinite(loss.detach()).all())


def _zeros_left(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """A frozen tensor's gradient from before, where it is all zero: ``zero_grad`` keeps such tensors."""
    return gradient if gradient is not None and not bool(gradient.any()) else None


def _is_measurable(parameter: torch.nn.Parameter, gradient: torch.Tensor | None) -> bool:
    plain = parameter.is_floating_point() and parameter.layout is torch.strided and not parameter.is_meta
    plain = plain and type(parameter) is torch.nn.Parameter and parameter.numel() > 0
    return plain and (gradient is None or bool(torch.isfinite(_values(gradient)).all()))


def _norm(parameters: Any) -> float:
    squares = (float(_values(p.grad).double().square().sum()) for p in parameters if p.grad is not None)
    return math.sqrt(sum(squares))


def _has_gradient(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(_values(parameter.grad).any())


def _values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _rms(tensor: torch.Tensor) -> float:
    values = _values(tensor.detach())
    return math.sqrt(float(values.float().square().sum()) / max(1, tensor.numel()))
