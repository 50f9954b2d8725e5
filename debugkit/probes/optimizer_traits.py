"""What kind of optimizer it is, learned from what it does to a tensor of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.schedule_rehearsal import groups_of
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.trials.schedule import unwrap
from debugkit.trials.stepper import Stepper
from debugkit.trials.trial import RefusedError

Scaling = Literal["normalised", "proportional", "other"]

_Tried = tuple[Scaling, float, float, str]

_SIDE = 16
_SPREAD = 0.05
_RATE = 1e-4
_SETTLED = 100
_LOUDER = 100.0


@dataclass(frozen=True)
class OptimizerTraits:
    """How an optimizer's step follows the gradient, whatever its name.

    Attributes:
        name: its class.
        scaling: per parameter group, ``normalised`` where the size of a step does not follow that of the gradient (Adam, Lion, Muon),
            ``proportional`` where it does (SGD), ``other`` where neither holds or it adapts its own rate.
        size: per group, the size of a step after many equal gradients of size 1, over the learning rate.
        early: per group, the size of its first step over that of a later one: above 1 for RMSprop and Adagrad.
        couples_decay: per group, whether weight decay goes through the normalisation with the gradient, as L2 in Adam.
        decouples_decay: per group, whether weight decay shrinks the weights beside the gradient, as in AdamW.
    """

    cost: ClassVar[Cost] = "static"
    name: str
    scaling: tuple[Scaling, ...]
    size: tuple[float, ...]
    early: tuple[float, ...]
    couples_decay: tuple[bool, ...]
    decouples_decay: tuple[bool, ...]

    @staticmethod
    def collect(target: Target, sandbox: Sandbox) -> OptimizerTraits:
        """Step the optimizer's class and settings on a small matrix; groups with equal settings share one trial.

        Raises:
            Unavailable: there is no optimizer, or it can't be stepped without the model.
        """
        groups = groups_of(target)
        found: dict[str, _Tried] = {}
        keys = [_settings(group) for group in groups]
        try:
            with sandbox.probe():
                stepper = Stepper(target.optimizer, [_RATE] * len(groups))
                for index, (group, key) in enumerate(zip(groups, keys, strict=True)):
                    if key not in found:
                        found[key] = _try(stepper, index, group)
        except RefusedError as error:
            raise Unavailable(f"the optimizer can't be tried on a tensor of its own: {error}") from None
        tried = [found[key] for key in keys]
        return OptimizerTraits(
            type(unwrap(target.optimizer)).__name__,
            tuple(scaling for scaling, _, _, _ in tried),
            tuple(size for _, size, _, _ in tried),
            tuple(first / size if size else 1.0 for _, size, first, _ in tried),
            tuple(scaling == "normalised" and decay == "through" for scaling, _, _, decay in tried),
            tuple(scaling == "normalised" and decay == "beside" for scaling, _, _, decay in tried),
        )


def _settings(group: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr", "name")}
    return repr(sorted(kept.items())) + str(group.get("lr") is None)


def _try(stepper: Stepper, index: int, group: Mapping[str, Any]) -> _Tried:
    device = next((p.device for p in group["params"] if not p.is_meta), torch.device("cpu"))
    scaling, size, first = _scaling(stepper, index, device, group.get("lr") is not None)
    return scaling, size, first, _decay(stepper, index, device, float(group.get("weight_decay") or 0.0))


def _scaling(
    stepper: Stepper, group: int, device: torch.device, has_rate: bool
) -> tuple[Scaling, float, float]:
    weights, gradient = _matrices(device)
    first = _rms(stepper.step(group, weights, gradient, weight_decay=0.0) - weights) / _RATE
    size, louder = (_last_move(stepper, group, scale * gradient, 0.0) for scale in (1.0, _LOUDER))
    if not has_rate or not (0 < first < math.inf and 1e-3 < size / first < 1e3):
        return "other", size, first
    growth = louder / size
    if 0.5 < growth < 2:
        return "normalised", size, first
    return ("proportional" if 0.5 * _LOUDER < growth < 2 * _LOUDER else "other"), size, first


def _decay(
    stepper: Stepper, group: int, device: torch.device, decay: float
) -> Literal["no", "through", "beside"]:
    """How a tensor whose gradient is zero moves."""
    if not decay:
        return "no"
    moved = _last_move(stepper, group, 0 * _matrices(device)[1], 1e-2)
    return "no" if not moved else "through" if moved > 0.1 else "beside"


def _last_move(stepper: Stepper, group: int, gradient: torch.Tensor, decay: float) -> float:
    """The size of the last of many steps, over the learning rate."""
    weights, _ = _matrices(gradient.device)
    before, after = (
        stepper.step(group, weights, gradient, steps=steps, weight_decay=decay)
        for steps in (_SETTLED - 1, _SETTLED)
    )
    return _rms(after - before) / _RATE


def _matrices(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and a gradient of size 1, neither of them random."""
    places = torch.arange(_SIDE * _SIDE, dtype=torch.float32, device=device).view(_SIDE, _SIDE)
    gradient, weights = torch.cos(1.7 * places + 0.3), torch.cos(2.3 * places + 1.1)
    return _SPREAD * weights / _rms(weights), gradient / _rms(gradient)


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
