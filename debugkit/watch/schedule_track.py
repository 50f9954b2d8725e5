"""Following learning-rate schedulers by the count that they keep."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Mapping
from typing import Any

from debugkit.probes.loop_record import SchedulerLog
from debugkit.watch.optimizer_track import OptimizerTrack

_JUMP = 50
_FARTHEST = 10_000_000


class ScheduleTrack:
    """One scheduler, held weakly."""

    def __init__(self, scheduler: Any, owner: OptimizerTrack | None, passes: int) -> None:
        self.ref = weakref.ref(scheduler)
        self.name = type(scheduler).__name__
        self.steps = 0
        self.before_first = 0
        self.resumed = False
        self.inner = False
        self.owner = owner
        self._begun = owner.steps if owner is not None else 0
        self._passes = passes
        self._epoch = getattr(scheduler, "last_epoch", 0)
        self._horizon = _horizon(scheduler)
        self._milestones = _milestones(scheduler)

    def look(self) -> None:
        """Count the steps since the last look."""
        if (scheduler := self.ref()) is None:
            return
        epoch = getattr(scheduler, "last_epoch", 0)
        if epoch == self._epoch:
            return
        taken = epoch - self._epoch if epoch > self._epoch else 1
        self._epoch = epoch
        if taken > _JUMP:
            self.resumed = True
            return
        self.steps += taken
        if self.owner is not None and self.owner.steps == 0:
            self.before_first += taken

    def log(self, passes: int) -> SchedulerLog:
        """What was seen so far."""
        self.look()
        return SchedulerLog(
            name=self.name,
            optimizer=self.owner.name if self.owner is not None else None,
            steps=self.steps,
            optimizer_steps=self.owner.steps - self._begun if self.owner is not None else 0,
            before_first=self.before_first,
            horizon=self._horizon,
            passes=passes - self._passes,
            resumed=self.resumed,
            milestones=self._milestones,
        )


class Schedulers:
    """The schedulers in use."""

    def __init__(self) -> None:
        self._tracks: list[ScheduleTrack] = []

    def add(self, scheduler: Any, owner: OptimizerTrack | None, passes: int) -> None:
        """A scheduler exists; those that it steps are its own affair."""
        if any(track.ref() is scheduler for track in self._tracks):
            return
        held = _held_by(scheduler)
        for track in self._tracks:
            track.inner |= (inner := track.ref()) is not None and id(inner) in held
        if hasattr(scheduler, "last_epoch"):
            self._tracks.append(ScheduleTrack(scheduler, owner, passes))

    def look(self) -> None:
        """Count their steps."""
        for track in self._tracks:
            track.look()

    def alive(self) -> list[Any]:
        """Those that exist still."""
        known = ((track.ref(), track.inner) for track in self._tracks)
        return [scheduler for scheduler, inner in known if scheduler is not None and not inner]

    def logs(self, passes: int) -> tuple[SchedulerLog, ...]:
        """What was seen so far."""
        return tuple(track.log(passes) for track in self._tracks if not track.inner)


def _held_by(scheduler: Any) -> set[int]:
    """The ids of what a scheduler holds, the schedulers that it steps among it."""
    held = set()
    for value in vars(scheduler).values():
        held |= {id(part) for part in (value if isinstance(value, list | tuple) else [value])}
    return held


def _milestones(scheduler: Any) -> tuple[int, ...]:
    found = vars(scheduler).get("milestones")
    whole = isinstance(found, list | tuple | Mapping) and all(isinstance(one, int) for one in found)
    return tuple(sorted(found)) if whole and found else ()


def _horizon(scheduler: Any) -> int | None:
    """After how many steps the schedule is at its end, from what the scheduler itself says."""
    state: Mapping[str, Any] = vars(scheduler)
    for name in ("T_max", "total_steps"):
        if isinstance(state.get(name), int):
            return int(state[name])
    lambdas = state.get("lr_lambdas")
    if lambdas and isinstance(lambdas[0], types.FunctionType | functools.partial):
        return _end_of(lambdas[0])
    return None


def _end_of(factor: Any) -> int | None:
    """The first step from which on a factor that falls to zero stays there."""
    try:
        far = 1
        while factor(far) != 0 or factor(far + 1) != 0 or factor(2 * far) != 0:
            far *= 2
            if far > _FARTHEST:
                return None
        near = far // 2
        while far - near > 1:
            middle = (near + far) // 2
            if factor(middle) == 0:
                far = middle
            else:
                near = middle
    except (ArithmeticError, ValueError, TypeError, LookupError):
        return None
    return far
