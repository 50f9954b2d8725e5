"""The schedule rehearsed: which learning rates training will use, step by step, without the model."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.trials.schedule import Curve, rehearse, unwrap, unwrap_scheduler

_BEYOND = 10


@dataclass(frozen=True)
class ScheduleRehearsal:
    """The learning rates of a run.

    Attributes:
        scheduled: whether there is a scheduler.
        curve: the rates per parameter group, one step of the scheduler after another, past the end of training.
        planned: the optimizer steps that are left, where that is known.
        per_epoch: optimizer steps in one pass over the loader, where it has a length.
        base: the rates per parameter group that the scheduler scales.
    """

    cost: ClassVar[Cost] = "static"
    scheduled: bool
    curve: Curve = field(repr=False)
    planned: int | None
    per_epoch: int | None
    base: tuple[float, ...]

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        *,
        most_steps: Annotated[
            int, Field(ge=10, description="steps of the scheduler that are rehearsed")
        ] = 50_000,
    ) -> ScheduleRehearsal:
        """Step a copy of the scheduler.

        Raises:
            Unavailable: there is no optimizer.
        """
        groups = groups_of(target)
        current = tuple((rate_of(group),) for group in groups)
        base = tuple(rate_of(group, "initial_lr") or rate_of(group) for group in groups)
        planned, per_epoch = target.training_steps, _per_epoch(target)
        if target.scheduler is None:
            return ScheduleRehearsal(False, Curve(current), planned, per_epoch, base)
        scheduler = unwrap_scheduler(target.scheduler)
        if planned is not None and 0 < (done := _steps_taken(scheduler)) < planned:
            planned -= done
        total = getattr(scheduler, "total_steps", None)
        known = planned if planned is not None else total if isinstance(total, int) else 1000
        with sandbox.probe():
            curve = rehearse(target.optimizer, scheduler, min(max(_BEYOND * known, 1000), most_steps))
        return ScheduleRehearsal(True, curve, planned, per_epoch, base)

    @property
    def peaks(self) -> tuple[float, ...]:
        """The highest rate of each group in training; of the known ones where the schedule could not be rehearsed."""
        end = None if self.planned is None else max(1, self.planned)
        highest = (max(rates[:end]) for rates in self.curve.rates)
        if self.scheduled and not self.curve.steps:
            return tuple(max(pair) for pair in zip(highest, self.base, strict=True))
        return tuple(highest)

    @property
    def total_rates(self) -> tuple[float, ...] | None:
        """Per group, the sum of the rates over training; ``None`` where its length is not known."""
        if self.planned is None:
            return None
        return tuple(_extended_sum(rates, self.planned) for rates in self.curve.rates)


def groups_of(target: Target) -> list[dict[str, Any]]:
    """The parameter groups of the target's torch optimizer.

    Raises:
        Unavailable: there is none.
    """
    if target.optimizer is None:
        raise Unavailable("the target has no optimizer; pass Target(optimizer=...)")
    return list(unwrap(target.optimizer).param_groups)


def rate_of(group: dict[str, Any], key: str = "lr") -> float:
    """A group's learning rate; 0 where the optimizer chooses its own."""
    value = group.get(key)
    if isinstance(value, torch.Tensor):
        return 0.0 if value.is_meta or value.numel() != 1 else float(value)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _extended_sum(rates: Sequence[float], steps: int) -> float:
    known = rates[:steps]
    return sum(known) + known[-1] * (steps - len(known))


def _steps_taken(scheduler: Any) -> int:
    taken = getattr(scheduler, "last_epoch", 0)
    return taken if isinstance(taken, int) else 0


def _per_epoch(target: Target) -> int | None:
    if not isinstance(target.train_loader, Sized):
        return None
    try:
        batches = len(target.train_loader)
    except (TypeError, NotImplementedError):  # a data set of a stream has no length
        return None
    return max(1, batches // target.accumulation_steps) if batches else None
