"""One number of a metric, for outputs of known worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from debugkit.loss.metric_call import Scores, close

Verdict = Literal["best", "no number", "constant", "blind", "beaten"]

_MOSTLY_WRONG = 0.5


@dataclass(frozen=True)
class Reading:
    """One number of a metric, for outputs of known worth.

    Attributes:
        perfect: for the answers that the loss calls right.
        wrong: for the same answers given to other samples; nearly all are wrong in the first.
        constant: for one answer for all samples.
    """

    perfect: float
    wrong: tuple[float, ...]
    constant: tuple[float, ...]

    @property
    def verdict(self) -> Verdict:
        """Whether perfect answers are ``best``, in whichever direction the others tell.

        ``constant``: everything gets the same number. ``blind``: perfect answers get what they get when dealt to
        other samples. ``beaten``: some worse answers get a better number, or nearly all wrong ones the same.
        """
        if not math.isfinite(self.perfect):
            return "no number"
        wrong = [value for value in self.wrong if math.isfinite(value)]
        if not wrong:
            return "best"
        if all(close(value, self.perfect) for value in wrong):
            return "constant" if all(close(value, self.perfect) for value in self.constant) else "blind"
        return "beaten" if self.better is not None or close(wrong[0], self.perfect) else "best"

    @property
    def better(self) -> float | None:
        """The best number of worse answers, where it is better than that of the perfect ones."""
        wrong = [value for value in self.wrong if math.isfinite(value)]
        others = [*wrong, *(value for value in self.constant if math.isfinite(value))]
        up = sum(wrong) / len(wrong) < self.perfect
        best = max(others) if up else min(others)
        ahead = best > self.perfect if up else best < self.perfect
        return best if ahead and not close(best, self.perfect, 1e-4) else None


def works(readings: Mapping[str, Reading]) -> bool:
    """Whether perfect answers are best for some number."""
    return any(reading.verdict == "best" for reading in readings.values())


def takes_answers(readings: Mapping[str, Reading]) -> bool:
    """Whether class indices in the place of outputs give the full number, or no errors, as no accident does."""
    return any(
        reading.verdict == "best"
        and (
            any(close(reading.perfect, value) for value in (1.0, 100.0))
            or (reading.perfect == 0.0 and reading.wrong[0] >= _MOSTLY_WRONG)
        )
        for reading in readings.values()
    )


def scores_of(scores: Iterable[Scores], name: str) -> tuple[float, ...]:
    """One number of several calls, where they gave it."""
    return tuple(each[name] for each in scores if name in each)
