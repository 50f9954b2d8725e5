"""Numbers, distributions and samples as training goes, to where they are wanted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from debugkit.errors import one_line
from debugkit.report import Report, Result
from debugkit.state.randomness import Randomness
from debugkit.watch.dead_units import DeadUnits
from debugkit.watch.measures import histograms, scalars
from debugkit.watch.recorder import Recorder
from debugkit.watch.samples import COLUMNS, Samples
from debugkit.watch.sinks import Sink

_REPORT = ("check", "status", "message")


class MetricsLog:
    """Writes what a recorder sees after the first optimizer step and every so many.

    Destinations are opened when there is something to write. What goes wrong ends the logging to that destination,
    never the program.

    Args:
        openers: what opens each destination; see :func:`debugkit.watch.sinks.openers`.
        recorder: what is watched.
        every: optimizer steps from one look to the next.
        samples: sample predictions at each look.

    Attributes:
        notices: which destinations failed, and why.
    """

    def __init__(
        self, openers: Sequence[Callable[[], Sink]], recorder: Recorder, every: int, samples: int = 0
    ) -> None:
        self._openers = list(openers)
        self._sinks: list[Sink] = []
        self._recorder = recorder
        self._every = every
        self._units = DeadUnits(recorder)
        self._samples = Samples(recorder, samples) if samples else None
        self._start = self._clock = time.perf_counter()
        self._step = self._counted = 0
        self._timed = (0.0, 0.0)
        self._alerted = False
        self.notices: list[str] = []
        recorder.every = every
        recorder.samples = 0
        if samples:
            recorder.recent = deque(maxlen=2)
            self._begin()

    def __call__(self, steps: int) -> None:
        """An optimizer has stepped."""
        if steps == 1 or steps - self._step >= self._every:
            try:
                with self._recorder.unseen():
                    self._write(steps)
            except Exception as error:
                self._end(f"logging ended early: {one_line(error)}")
        if (self._openers or self._sinks) and steps + 1 - self._step >= self._every:
            self._begin()

    def finding(self, result: Result, steps: int) -> None:
        """A check warns or fails: the first that fails is an alert."""
        if result.status == "fail" and not self._alerted:
            self._alerted = True
            title = f"{result.check} fails at step {steps}"
            with self._recorder.unseen():
                self._each(lambda sink: sink.alert(steps, title, result.active[0].message))

    def close(self, report: Report | None) -> None:
        """Write the report, and close."""
        self._stop_looking()
        with self._recorder.unseen():
            if report is not None and report.results:
                rows = [
                    (result.check, result.status, finding.message)
                    for result in report.results
                    for finding in result.findings
                    if not finding.suppressed
                ]
                self._each(lambda sink: sink.table(self._recorder.steps, "report", _REPORT, rows))
            self._each(lambda sink: sink.close())
        self._openers, self._sinks = [], []

    def _begin(self) -> None:
        if self._recorder.steps:
            self._units.begin()
        if self._samples is not None:
            self._samples.begin()

    def _write(self, steps: int) -> None:
        now = time.perf_counter()
        dead = self._units.end()
        rows = self._samples.end() if self._samples is not None else []
        values = {
            "seconds": round(now - self._start, 3),
            **self._paces(steps, now),
            **dict(scalars(self._recorder)),
        }
        for name, (still, units) in dead.items():
            values[f"layer_dead/{name}"] = still / units
        if dead:
            values["dead_units"] = sum(still for still, _ in dead.values()) / sum(
                units for _, units in dead.values()
            )
        spread = histograms(self._recorder)
        self._each(lambda sink: sink.scalars(steps, values))
        self._each(lambda sink: sink.histograms(steps, spread))
        if rows:
            self._each(lambda sink: sink.table(steps, "samples", COLUMNS, rows))
        self._clock, self._step = now, steps - steps % self._every

    def _paces(self, steps: int, now: float) -> dict[str, float]:
        seconds, taken = max(1e-9, now - self._clock), max(1, steps - max(1, self._step) + (self._step == 0))
        found = {"steps_per_second": round(taken / seconds, 3), "seconds_per_step": seconds / taken}
        samples = (self._recorder.samples or 0) - self._counted
        if samples:
            found["samples_per_second"] = round(samples / seconds, 3)
        timed, waited = self._recorder.times
        if timed > self._timed[0]:
            found["waiting"] = round((waited - self._timed[1]) / (timed - self._timed[0]), 4)
        self._counted, self._timed = self._counted + samples, (timed, waited)
        return found

    def _each(self, tell: Callable[[Sink], object]) -> None:
        before = Randomness()
        for opener in self._openers:
            try:
                self._sinks.append(opener())
            except Exception as error:
                self.notices.append(f"logging did not begin: {one_line(error)}")
        self._openers = []
        for sink in list(self._sinks):
            try:
                tell(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.notices.append(f"logging to {type(sink).__name__} ended early: {one_line(error)}")
        before.restore()

    def _end(self, notice: str) -> None:
        self.notices.append(notice)
        self._stop_looking()
        self._openers = []
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            with suppress(Exception):
                sink.close()

    def _stop_looking(self) -> None:
        self._units.end()
        if self._samples is not None:
            self._samples.end()
        self._recorder.recent = None
