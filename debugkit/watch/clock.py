"""Where the time of training steps goes."""

from __future__ import annotations

import time

from debugkit.probes.loop_record import TimeLog

_UNTIMED_STEPS = 3


class Clock:
    """Wall time from step to step of one optimizer, without its first steps and those around a pause."""

    def __init__(self) -> None:
        self._latest: float | None = None
        self._waited = 0.0
        self._paused = False
        self._steps = 0
        self.seconds = 0.0
        self.waiting = 0.0

    def waits(self, seconds: float) -> None:
        """A loader was waited for."""
        self._waited += seconds

    def pause(self) -> None:
        """More than a step happens now: the time until the next step does not count."""
        self._paused = True

    def step(self, steps: int) -> None:
        """The optimizer has taken its so-manieth step."""
        now = time.perf_counter()
        if self._latest is not None and steps > _UNTIMED_STEPS and not self._paused:
            self._steps += 1
            self.seconds += now - self._latest
            self.waiting += self._waited
        self._latest, self._waited, self._paused = now, 0.0, False

    def log(self) -> TimeLog | None:
        """What was measured; ``None`` before."""
        if not self.seconds:
            return None
        return TimeLog(self._steps, self.seconds, self.waiting / self.seconds)
