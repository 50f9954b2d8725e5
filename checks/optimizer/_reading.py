"""A rehearsed schedule, read as stepped once per optimizer step or once per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from debugkit.probes.schedule_rehearsal import ScheduleRehearsal

_NEGLIGIBLE = 1e-6
_NOTHING, _NEAR_NOTHING = 1e-12, 1e-9  # what lies between is passed by a decay by factors


@dataclass(frozen=True)
class Reading:
    """The rates of the run, one per step of the schedule.

    Attributes:
        unit: what one step of the schedule is: ``step`` or ``epoch``.
        length: how many of them the run has, or were rehearsed.
        highest: the highest rate among the parameter groups.
        lowest: the lowest.
        raised: whether the scheduler raises before the run ends.
        later_peak: the highest rate that a warm-up gets to after the run, where the rate only rises in the run and
            falls again, or stays, after that peak.
        later_place: the step of that peak.
    """

    unit: str
    length: int
    highest: list[float]
    lowest: list[float]
    raised: bool
    later_peak: float | None
    later_place: int

    @property
    def peak(self) -> float:
        """The highest rate of the run."""
        return max(self.highest)

    @property
    def end(self) -> int | None:
        """The step after which the rate is 0, or a millionth of its peak, until the end; ``None`` if it is not."""
        if len(self.highest) < self.length and self.highest[-1] > _NEGLIGIBLE * self.peak:
            return None
        last = max((i for i, rate in enumerate(self.highest) if rate > _NEGLIGIBLE * self.peak), default=-1)
        return last + 1 if last + 1 < self.length else None

    @property
    def swings(self) -> int:
        """How often the rate falls from near its peak to next to nothing and comes back without a jump."""
        count, low = 0, False
        for before, rate in pairwise(self.highest):
            if rate > before + 0.6 * self.peak:
                return 0
            if low and rate > 0.9 * self.peak:
                count, low = count + 1, False
            elif rate < 0.05 * self.peak:
                low = True
        return count

    @property
    def tail(self) -> float:
        """The highest rate after the end."""
        return max(self.highest[self.end :], default=0.0) if self.end is not None else 0.0


def readings(rehearsal: ScheduleRehearsal) -> Iterator[Reading]:
    """The schedule per optimizer step, then per epoch, where that is another and can be meant."""
    if rehearsal.planned is None:
        yield _reading(rehearsal, "step", rehearsal.curve.steps)
        return
    yield _reading(rehearsal, "step", rehearsal.planned)
    if rehearsal.per_epoch is not None and rehearsal.per_epoch > 1:
        epochs = -(-rehearsal.planned // rehearsal.per_epoch)
        by_epoch = _reading(rehearsal, "epoch", epochs)
        if _ends_with_the_run(rehearsal, epochs):
            yield by_epoch


def _reading(rehearsal: ScheduleRehearsal, unit: str, length: int) -> Reading:
    rows = list(zip(*rehearsal.curve.rates, strict=True))
    highest, lowest = [max(row) for row in rows], [min(row) for row in rows]
    later, place = _later_peak(highest, length)
    raised = rehearsal.curve.refusal is not None and len(highest) < length
    return Reading(unit, length, highest[:length], lowest[:length], raised, later, place)


def _later_peak(highest: list[float], length: int) -> tuple[float | None, int]:
    run = highest[:length]
    if len(highest) <= length or any(later < earlier for earlier, later in pairwise(run)):
        return None, 0
    peak = max(highest)
    place = highest.index(peak)
    return (peak, place) if place < len(highest) - 1 and run[0] < 0.5 * peak else (None, 0)


def _ends_with_the_run(rehearsal: ScheduleRehearsal, epochs: int) -> bool:
    """Whether a schedule that falls to 0 does so near the last epoch; others may fit a run of any length."""
    highest = [max(row) for row in zip(*rehearsal.curve.rates, strict=True)]
    floor, near = _NOTHING * max(highest), _NEAR_NOTHING * max(highest)
    zero = next((i for i in range(1, len(highest)) if highest[i] <= floor and highest[i - 1] > near), None)
    if zero is None and rehearsal.curve.refusal is not None:
        zero = len(highest) - 1
    return zero is None or 0.8 * epochs <= zero <= 1.25 * epochs + 1
