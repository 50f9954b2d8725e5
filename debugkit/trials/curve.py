"""The curve of one short training run: how it ended, and what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from debugkit.loss.objective import Score

Outcome = Literal["memorised", "learning", "stalled", "falling", "diverged", "out of time"]

_PATIENCE = 120
_LEARNING = 0.1
_STANDING = 0.05
_RISEN = 0.2
_LUCKY = 0.5


@dataclass(frozen=True)
class Curve:
    """One short training run.

    Attributes:
        optimizer: such as ``AdamW, lr 0.001``.
        outcome: how it ended; ``learning`` where it was ended because it plainly learns.
        scores: one per step, taken before the step.
        progress: per step, 0 for the best constant prediction and 1 for a perfect one.
    """

    optimizer: str
    outcome: Outcome
    scores: tuple[Score, ...] = field(repr=False)
    progress: tuple[float, ...] = field(repr=False)

    @property
    def best(self) -> float:
        """The furthest progress."""
        return max((p for p in self.progress if math.isfinite(p)), default=0.0)

    @property
    def first(self) -> Score:
        """The score before the first step."""
        return self.scores[0]

    @property
    def last(self) -> Score:
        """The score at the end."""
        return self.scores[-1]

    @property
    def learns(self) -> bool:
        """Whether nothing was left to find out."""
        return self.outcome in ("memorised", "learning")

    @property
    def stands(self) -> bool:
        """Whether it ended no better than the best constant prediction."""
        ending = self.scores[-max(1, len(self.scores) // 10) :]
        gained = sum(score.gained(self.first) for score in ending) / len(ending)
        return self.outcome == "diverged" or (not self.learns and gained < _STANDING)

    @property
    def rises(self) -> bool:
        """Whether the loss went well above its start on the way."""
        return self.outcome == "diverged" or _has_risen(self.scores, _RISEN)


def has_stalled(track: Sequence[float]) -> bool:
    """Whether the last steps brought nothing, measured against the best stretch of as many steps before.

    A run that moves slowly but steadily, towards targets far away say, has not stalled. A track without values
    tells nothing against it.
    """
    if len(track) <= _PATIENCE:
        return False
    if not math.isfinite(track[-1]):
        return True
    stretch = _PATIENCE // 2
    recent = max(track) - max(track[:-stretch])
    before = max(track[end] - track[end - stretch] for end in range(stretch, len(track) - stretch))
    return recent < 0.01 and (recent < 0.25 * before or max(recent, before) < 1e-6)


def learns(scores: Sequence[Score]) -> bool:
    """Whether the loss is lower by a share for ten steps on end, and not by luck in a wild run."""
    if len(scores) <= 10 or _has_risen(scores, _LUCKY):
        return False
    return all(score.gained(scores[0]) >= _LEARNING for score in scores[-10:])


def _has_risen(scores: Sequence[Score], share: float) -> bool:
    return max(-score.fallen(scores[0]) for score in scores) > share
