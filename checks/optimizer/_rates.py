"""Learning rates outside an optimizer's usual range, confirmed by a real step."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass

from debugkit.probes.optimizer_step import Move, OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal

LARGE_UPDATE = 0.3
SMALL_UPDATE = 1e-5
_STEEP = 10.0
_UNSEEN = 10.0
_FLAT = 1e-7


@dataclass(frozen=True)
class Off:
    """A learning rate far outside the usual range.

    Attributes:
        rate: the rate.
        high: whether it is too high.
        size: how far a step moves a weight, for an optimizer that normalises the gradient.
        ratio: the update over the weight, where a step was measured.
    """

    rate: float
    high: bool
    size: float
    ratio: float | None


def matrices(moves: OptimizerStep, groups: Collection[int] | None = None) -> list[Move]:
    """The trainable matrices with a gradient and values that the optimizer moves."""
    return [
        move
        for move in moves.moves.values()
        if len(move.shape) > 1 and move.trainable and move.alive and move.weight
        if groups is None or move.group in groups
    ]


def median_ratios(moves: OptimizerStep, groups: Collection[int] | None = None) -> tuple[float, float] | None:
    """The medians of update over weight, as it is and with clipped gradients; ``None`` without a matrix."""
    found = matrices(moves, groups)
    if not found:
        return None
    return statistics.median(m.ratio for m in found), statistics.median(m.clipped_ratio for m in found)


def out_of_range(
    rehearsal: ScheduleRehearsal,
    traits: OptimizerTraits,
    moves: OptimizerStep | None,
    highest: float = 0.05,
    lowest: float = 1e-8,
) -> dict[int, Off]:
    """The parameter groups whose highest planned rate is far outside the optimizer's usual range.

    A group that does not move at all while others do is not among them; see `update-ratio`.
    """
    found = {}
    moving = any(move.update for move in matrices(moves)) if moves is not None else False
    for group, rate in enumerate(rehearsal.peaks):
        scaling, size = traits.scaling[group], traits.size[group] * rate
        seen = median_ratios(moves, [group]) if moves is not None else None
        if rate <= 0 or scaling == "other" or (seen is None and moves is not None):
            continue
        margin = _UNSEEN if seen is None else 1.0
        if scaling == "normalised":
            high, low = size > margin * highest, size < lowest / margin
        else:
            high, low = size > margin * _STEEP, size < _FLAT / margin
        if seen is not None:
            high = high and min(seen) / max(1.0, traits.early[group]) > LARGE_UPDATE
            low = low and seen[0] < SMALL_UPDATE and (seen[0] > 0 or not moving)
        if high or low:
            found[group] = Off(rate, high, size, None if seen is None else seen[0])
    return found
