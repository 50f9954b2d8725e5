"""The user's own optimizer on trial, and the one setting with which it would learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from debugkit.target import Target
from debugkit.trials.curve import Curve, learns
from debugkit.trials.schedule import peak_rates, twin, unwrap
from debugkit.trials.trial import Trial

Setting = Literal["maximize", "weight_decay", "clip", "lr"]

_DECAYED = 0.05
_WARM_UP = 30
_SMALLER = 100.0


@dataclass(frozen=True)
class Repair:
    """One change with which the user's optimizer learns, where it does not as it is.

    Attributes:
        setting: what was changed: ``maximize`` and ``weight_decay`` off, the gradient clipped to a norm of 1, or
            a hundredth of the learning rate.
        curve: the run with the change.
    """

    setting: Setting
    curve: Curve


class OwnOptimizer:
    """The user's optimizer, with its own settings at their peak learning rates, over the parameters on trial.

    Args:
        target: holds the optimizer and its scheduler.
        parameters: the model's trainable parameters.
        trial: where the optimizer is run.
    """

    def __init__(self, target: Target, parameters: Sequence[torch.nn.Parameter], trial: Trial) -> None:
        self._target = target
        self._parameters = parameters
        self._trial = trial

    def run(self, steps: int, end: float, change: Setting | None = None) -> Curve:
        """Train with at most one setting changed.

        Raises:
            RefusedError: its step raised.
        """
        original = unwrap(self._target.optimizer)
        double = twin(original, {id(p) for p in self._parameters})
        kept = self._own_groups()
        for group, (_, peak) in zip(double.param_groups, kept, strict=True):
            if group.get("lr") is not None:
                group["lr"] = peak / (_SMALLER if change == "lr" else 1)
            if change in ("maximize", "weight_decay") and change in group:
                group[change] = False if change == "maximize" else 0.0
        rates = sorted({peak for _, peak in kept})
        rated = any(group.get("lr") is not None for group, _ in kept)
        shown = f", lr {' to '.join(f'{rate:g}' for rate in sorted({rates[0], rates[-1]}))}" if rated else ""
        warms_up = any(peak > 2 * float(group.get("lr") or 0.0) for group, peak in kept)
        return self._trial.run(
            f"{type(original).__name__}{shown}",
            double,
            steps,
            end,
            clip=1.0 if change == "clip" else None,
            warm_up=min(_WARM_UP, steps // 3) if warms_up else 0,
            enough=learns,
        )

    def repair(self, own: Curve, steps: int, end: float) -> Repair | None:
        """Look for the one setting that keeps it at a constant prediction, where ``own`` ended no better than that."""
        for setting in self._suspects(own, steps):
            curve = self.run(steps, end, setting)
            if curve.learns and not (setting == "clip" and curve.rises):
                return Repair(setting, curve)
        return None

    def _suspects(self, own: Curve, steps: int) -> Iterator[Setting]:
        if not own.stands:
            return
        groups = self._own_groups()
        if any(group.get("maximize") for group, _ in groups):
            yield "maximize"
        if any(rate * float(group.get("weight_decay", 0.0)) * steps > _DECAYED for group, rate in groups):
            yield "weight_decay"
        if own.rises:
            yield "clip"
            yield "lr"

    def _own_groups(self) -> list[tuple[dict[str, Any], float]]:
        """The groups of the user's optimizer that hold the model's tensors, with their peak learning rates."""
        original = unwrap(self._target.optimizer)
        peaks = peak_rates(original, self._target.scheduler, self._target.training_steps)
        known = {id(p) for p in self._parameters}
        return [
            (group, peak)
            for group, peak in zip(original.param_groups, peaks, strict=True)
            if any(id(p) in known for p in group["params"])
        ]
