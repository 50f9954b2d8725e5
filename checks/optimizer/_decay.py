"""What weight decay acts on, and how hard it pulls."""

from __future__ import annotations

import statistics
from collections.abc import Collection

from debugkit import Target
from debugkit.probes.optimizer_parameters import OptimizerParameters, parameters_of
from debugkit.probes.optimizer_step import OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits

from ._rates import matrices

_NEAR_ONE = 0.5
_STRONG = 0.05


def gains_decayed(target: Target, held: OptimizerParameters, group: int) -> list[str]:
    """Trainable vectors of one group whose values lie around 1, as the gains of normalisations do."""
    found = []
    for name, parameter in parameters_of(target):
        if held.groups.get(name) != group or name in held.frozen or parameter.ndim != 1:
            continue
        if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() < 2:
            continue
        values = parameter.detach().float()
        near = (values - 1).abs() < _NEAR_ONE
        if float(near.float().mean()) > 0.9 and abs(float(values.mean()) - 1) < _NEAR_ONE:
            found.append(name)
    return found


def values_of(target: Target, names: Collection[str]) -> int:
    """How many values some parameters have together."""
    return sum(p.numel() for name, p in parameters_of(target) if name in names)


def outweighed(moves: OptimizerStep, traits: OptimizerTraits, group: int, decay: float) -> float | None:
    """How much harder decay pulls a group's matrices than the gradient does; the median."""
    found = matrices(moves, [group])
    if not decay or not found:
        return None
    if traits.decouples_decay[group]:
        return statistics.median(decay * move.weight / max(traits.size[group], 1e-12) for move in found)
    if traits.scaling[group] == "proportional":
        scale = min(1.0, 1.0 / moves.gradient_norm) if moves.gradient_norm else 1.0
        pulls = (decay * move.weight / max(scale * (move.gradient or 0.0), 1e-12) for move in found)
        return statistics.median(pulls) if decay >= _STRONG else None
    return None
