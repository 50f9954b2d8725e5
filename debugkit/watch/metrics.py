"""Numbers as training goes, as JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from statistics import median
from typing import Any, TextIO

from debugkit.watch.recorder import Recorder


class MetricsLog:
    """Writes a line per so many optimizer steps.

    A line has ``step``, ``seconds`` since the watch began, ``loss`` by source line, ``lr``, ``grad_norm`` and
    ``update`` (median relative size of an update) by optimizer, ``layers`` (the same by parameter),
    ``steps_per_second`` and ``waiting`` (share of the time that waits for data).

    Args:
        file: where the lines go.
        recorder: what is watched.
        every: optimizer steps from line to line.
    """

    def __init__(self, file: TextIO, recorder: Recorder, every: int) -> None:
        self._file = file
        self._recorder = recorder
        self._every = every
        self._start = self._clock = time.perf_counter()
        self._step = 0
        recorder.every = every

    def __call__(self, steps: int) -> None:
        """An optimizer has stepped."""
        if steps - self._step < self._every:
            return
        now = time.perf_counter()
        line = {
            "step": steps,
            "seconds": round(now - self._start, 3),
            "steps_per_second": round((steps - self._step) / max(1e-9, now - self._clock), 3),
            **metrics(self._recorder),
        }
        self._clock, self._step = now, steps
        with suppress(OSError, ValueError):
            self._file.write(json.dumps(_plain(line)) + "\n")
            self._file.flush()


def metrics(recorder: Recorder) -> dict[str, Any]:
    """The latest numbers of a recorder."""
    record = recorder.record(thorough=False)
    found: dict[str, Any] = {
        "loss": {log.location or "": log.values[-1] for log in record.losses if log.values},
        "lr": {log.name: list(log.rates[-1][1]) for log in record.optimizers if log.rates},
        "grad_norm": {},
        "update": {},
        "layers": {},
    }
    for log in record.optimizers:
        if log.windows:
            found["grad_norm"][log.name] = log.windows[-1].norm
        paces = {layer.name: layer.ratios[-1] for layer in log.layers if layer.ratios}
        if paces:
            found["update"][log.name] = median(paces.values())
            found["layers"].update(paces)
    if record.times is not None:
        found["waiting"] = round(record.times.waiting, 4)
    return found


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have as text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class StatusLine:
    """A line on a terminal that is written over: step, loss, learning rate, pace, findings.

    Args:
        file: the terminal.
        recorder: what is watched.
    """

    def __init__(self, file: TextIO, recorder: Recorder) -> None:
        self._file = file
        self._recorder = recorder
        self._shown = 0.0
        self._step = 0
        self._width = 0
        self.findings = 0

    def __call__(self, steps: int) -> None:
        """An optimizer has stepped."""
        now = time.perf_counter()
        if now - self._shown < 0.5:
            return
        pace = (steps - self._step) / (now - self._shown) if self._shown else 0.0
        self._shown, self._step = now, steps
        self._write(" · ".join(self._parts(steps, pace)))

    def say(self, text: str) -> None:
        """Show something else for a while."""
        self._write(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._write("")
            self._width = 0

    def _parts(self, steps: int, pace: float) -> Iterator[str]:
        yield f"debugkit: step {steps}"
        for stream in list(self._recorder.losses.streams.values())[:2]:
            if stream.values:
                yield f"loss {stream.values[-1]:.4g}"
        for track in list(self._recorder.optimizers.values())[:2]:
            if track.rates:
                yield f"lr {max(track.rates[-1][1], default=0.0):.3g}"
        if pace:
            yield f"{pace:.3g} steps/s"
        yield f"{self.findings} findings" if self.findings else "no finding"

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError, UnicodeError):
            self._file.write("\r" + text.ljust(self._width) + ("" if text else "\r"))
            self._file.flush()
            self._width = len(text)
