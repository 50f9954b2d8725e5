"""A scheduler rehearsed on copies: which learning rates training will use, without a model."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

_MOST_STEPS = 20_000


def unwrap(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper such as accelerate's."""
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
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


def peak_rates(optimizer: Any, scheduler: Any, steps: int | None) -> list[float]:
    """The highest learning rate of each parameter group over the planned schedule.

    Without a scheduler these are the current rates; 0 stands for an optimizer that chooses its own. A scheduler
    that can't be rehearsed (it needs a metric, say) gives the highest of the current and the initial rate.
    """
    original = unwrap(optimizer)
    current = [_rate(group) for group in original.param_groups]
    known = [max(_rate(g), _rate(g, "initial_lr"), _rate(g, "max_lr")) for g in original.param_groups]
    if scheduler is None:
        return current
    scheduler = getattr(scheduler, "scheduler", scheduler)
    double = twin(original)
    try:
        rehearsal = copy.deepcopy(scheduler, {id(original): double})
        peaks = [_rate(group) for group in double.param_groups]
        planned = min(steps or int(getattr(rehearsal, "total_steps", 0) or 1000), _MOST_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(planned):
                rehearsal.step()
                peaks = [max(peak, _rate(g)) for peak, g in zip(peaks, double.param_groups, strict=True)]
    except Exception:
        return known
    return peaks


def _rate(group: Mapping[str, Any], key: str = "lr") -> float:
    return float(group.get(key) or 0.0)
