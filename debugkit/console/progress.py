"""Progress: a live bar that names the check and the evidence at work."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from debugkit.console.terminal import is_terminal, wants_color

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """A bar on a terminal, silent anywhere else; an ``on_event`` of :class:`debugkit.runner.Run`.

    Args:
        file: the terminal.
        quiet: stay silent on a terminal too.
    """

    def __init__(self, file: TextIO, *, quiet: bool = False) -> None:
        self._bar: Bar | None = None
        if not quiet and is_terminal(file):
            self._bar = _bar(file)
            self._task = self._bar.add_task("planning", total=None, evidence="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            streams = sys.stdout, sys.stderr
            os.register_at_fork(after_in_child=lambda: _restore(streams))
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: str, value: Any) -> None:
        """Show an event of a run."""
        if self._bar is None:
            return
        if event == "plan":
            self._bar.update(self._task, total=value)
        elif event == "check":
            self._bar.update(self._task, description=value, evidence="")
        elif event == "evidence":
            self._bar.update(self._task, evidence=f"measuring {value}")
        elif event == "done":
            self._bar.advance(self._task)


def _restore(streams: tuple[TextIO, TextIO]) -> None:
    """A forked loader worker must not print through a lock that the bar's thread may have held."""
    sys.stdout, sys.stderr = streams


def _bar(file: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    return Bar(
        SpinnerColumn("line" if not _unicode(file) else "dots"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[evidence]}", style="dim", markup=False),
        TimeElapsedColumn(),
        console=Console(file=file, no_color=not wants_color(file)),
        transient=True,
    )


def _unicode(file: TextIO) -> bool:
    return (getattr(file, "encoding", None) or "").lower().replace("-", "") == "utf8"
