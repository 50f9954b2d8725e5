"""What a watch shows on a terminal while a program runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO

from debugkit.console.terminal import is_terminal
from debugkit.watch.recorder import Recorder


class StatusLine:
    """A line on a terminal that is written over: step, loss, learning rate, pace, findings.

    While it is there, the program's own output takes it away first; where the program has left a line open, such as a
    progress bar, none is shown.

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
        self._open = False
        self.findings = 0

    def begin(self) -> None:
        """Give way to what the program writes to its terminals from now on."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and is_terminal(stream):
                setattr(sys, name, _GivingWay(stream, self))

    def end(self) -> None:
        """Take the line away for good."""
        self.clear()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, _GivingWay):
                setattr(sys, name, stream.stream)

    def give_way(self, text: str) -> None:
        """The program is about to write a text."""
        self.clear()
        if text:
            self._open = not text.endswith("\n")

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
        plural = "" if self.findings == 1 else "s"
        yield f"{self.findings} finding{plural}" if self.findings else "no finding"

    def _write(self, text: str) -> None:
        """Write over the line; one that is wider than the terminal could not be written over."""
        if self._open and text:
            return
        text = text[: max(1, shutil.get_terminal_size().columns - 1)]
        with suppress(OSError, ValueError, UnicodeError):
            self._file.write("\r" + text.ljust(self._width) + ("" if text else "\r"))
            self._file.flush()
            self._width = len(text)


class _GivingWay:
    """A stream of the program, before whose output the status line goes away."""

    def __init__(self, stream: TextIO, line: StatusLine) -> None:
        self.stream = stream
        self._line = line

    def write(self, text: str) -> int:
        self._line.give_way(text)
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stream)
