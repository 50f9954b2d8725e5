"""A scheduler rehearsed on copies: which learning rates training will use, without a model."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit.errors import one_line

_MOST_STEPS = 20_000


def unwrap(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper such as accelerate's, which holds no parameter groups of its own."""
    while hasattr(optimizer, "optimizer") and "param_groups" not in vars(optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def twin(optimizer: Any, keep: set[int] | None = None) -> Any:
    """An optimizer of the same class and settings over the same parameters, with a state of its own.

    Args:
        optimizer: any torch optimizer, or a wrapper around one.
        keep: ``id`` of the parameters to hold; all by default. Groups that end up empty are dropped.
    """
    original = unwrap(optimizer)
    double = object.__new__(type(original))
    vars(double).update(vars(original))
    for name, value in list(vars(double).items()):
        if getattr(value, "__self__", None) is original or hasattr(value, "__wrapped__") or name == "step":
            del vars(double)[name]
        elif name.endswith("_hooks"):
            vars(double)[name] = type(value)()
    double.state = defaultdict(dict)
    double.param_groups = []
    for group in original.param_groups:
        params = [p for p in group["params"] if keep is None or id(p) in keep]
        if params:
            copied = {
                k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"
            }
            double.param_groups.append({**copied, "params": params})
    return double


@dataclass(frozen=True)
class Curve:
    """The learning rates that a scheduler gives, one step of it after another.

    Attributes:
        rates: per parameter group, the rate before the first step of the scheduler and after each.
        refusal: why the scheduler could not be stepped (further).
    """

    rates: tuple[tuple[float, ...], ...] = field(repr=False)
    refusal: str | None = None

    @property
    def steps(self) -> int:
        """How many steps the scheduler took."""
        return len(self.rates[0]) - 1 if self.rates else 0


def rehearse(optimizer: Any, scheduler: Any, steps: int) -> Curve:
    """Step a copy of a scheduler, with a copy of the optimizer that it drives.

    A scheduler whose step needs an argument (a metric) is not stepped at all; one that raises ends the curve there.
    """
    original = unwrap(optimizer)
    scheduler = unwrap_scheduler(scheduler)
    if asked := _asked_of(scheduler):
        rates = tuple((_rate(group),) for group in original.param_groups)
        return Curve(rates, f"its step needs `{asked}`")
    double = twin(original)
    refusal = None
    rows = [[_rate(group) for group in double.param_groups]]
    try:
        copied = copy.deepcopy(scheduler, {id(original): double})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(steps):
                copied.step()
                rows.append([_rate(group) for group in double.param_groups])
    except Exception as error:
        refusal = one_line(error)
    return Curve(tuple(zip(*rows, strict=True)), refusal)


def peak_rates(optimizer: Any, scheduler: Any, steps: int | None) -> list[float]:
    """The highest learning rate of each parameter group over the planned schedule.

    Without a scheduler these are the current rates; 0 stands for an optimizer that chooses its own. A scheduler
    that can't be rehearsed (it needs a metric, say) gives the highest of the current and the initial rate.
    """
    original = unwrap(optimizer)
    if scheduler is None:
        return [_rate(group) for group in original.param_groups]
    total = int(getattr(unwrap_scheduler(scheduler), "total_steps", 0) or 1000)
    curve = rehearse(original, scheduler, min(steps or total, _MOST_STEPS))
    if curve.refusal is not None:
        return [max(_rate(g), _rate(g, "initial_lr"), _rate(g, "max_lr")) for g in original.param_groups]
    return [max(rates) for rates in curve.rates]


def unwrap_scheduler(scheduler: Any) -> Any:
    """The scheduler inside a wrapper such as accelerate's."""
    return getattr(scheduler, "scheduler", scheduler)


def _asked_of(scheduler: Any) -> str | None:
    """The first argument without a default that a scheduler's step takes."""
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = (
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    return next((p.name for p in needed), None)


def _rate(group: Mapping[str, Any], key: str = "lr") -> float:
    return float(group.get(key) or 0.0)
