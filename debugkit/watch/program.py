"""``debugkit watch``: a whole program under watch, from its first line to its report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from debugkit.console.terminal import is_terminal, printable
from debugkit.report import Report, Result
from debugkit.watch.script import WhenImported, run_file, run_module
from debugkit.watch.sinks import openers

if TYPE_CHECKING:
    from debugkit.watch.session import Watch

StopOn = Literal["warn", "fail", "never"]


class Stopped(SystemExit):
    """Ends the program, because a finding is certain enough."""


@dataclass
class Program:
    """A program to run.

    Attributes:
        name: the file or module.
        arguments: its command line.
        is_module: whether ``name`` is a module.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`.
        stop_on: the gravity of a finding that ends the program.
        steps: stop looking after this many optimizer steps.
        log: where metrics are written; see :func:`debugkit.watch.sinks.openers`.
        log_every: optimizer steps from one look to the next.
        samples: sample predictions at each look.
        preflight: whether the checklist runs on the first iteration.
        quiet: no status line.
        watch: the watch, from the moment when the program imports torch.
        stopped: whether a finding ended the program.
    """

    name: str
    arguments: Sequence[str] = ()
    is_module: bool = False
    select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    config: str | None = None
    stop_on: StopOn = "never"
    steps: int | None = None
    log: Sequence[str] = ()
    log_every: int = 50
    samples: int = 0
    preflight: bool = True
    quiet: bool = False
    watch: Watch | None = None
    stopped: bool = False
    _must_stop: bool = False
    _status: Any = None

    def run(self) -> BaseException | None:
        """Run to the end; what ended it, unless it ran out.

        Raises:
            UsageError: metrics can't be written where they are wanted.
        """
        openers(self.log)
        ended: BaseException | None = None
        waiting = WhenImported("torch", self._begin)
        try:
            (run_module if self.is_module else run_file)(self.name, self.arguments)
        except BaseException as error:
            ended = error
        finally:
            waiting.remove()
        if self._status is not None:
            self._status.end()
        if self.watch is not None:
            self.watch.close(ended)
        return ended

    @property
    def report(self) -> Report | None:
        """What was seen, if the program imported torch."""
        return self.watch.report if self.watch is not None else None

    def _begin(self) -> None:
        from debugkit.watch.session import Watch
        from debugkit.watch.status_line import StatusLine

        self.watch = Watch(
            select=self.select,
            ignore=self.ignore,
            config=self.config,
            name=self.name,
            steps=self.steps,
            on_finding=self._found,
            on_step=self._stepped,
            preflight=self.preflight,
            on_event=self._progress,
            log=self.log,
            log_every=self.log_every,
            samples=self.samples,
        )
        if not self.quiet and is_terminal(sys.stderr):
            self._status = StatusLine(sys.stderr, self.watch.recorder)
            self._status.begin()
        self.watch.__enter__()

    def _progress(self, event: str, value: Any) -> None:
        if self._status is not None and event in ("check", "evidence"):
            self._status.say(f"debugkit: preflight on the first iteration: {value}")

    def _stepped(self, steps: int) -> None:
        if self._status is not None:
            self._status(steps)
        if self._must_stop and not self.stopped:
            self.stopped = True
            raise Stopped(1)

    def _found(self, result: Result, steps: int) -> None:
        if self.watch is None or self.watch.recorder.finished:
            return
        if self._status is not None:
            self._status.clear()
            self._status.findings += 1
        verb = {"fail": "fails", "warn": "warns"}[result.status]
        message = printable(result.active[0].message)
        print(f"debugkit: {result.check} {verb} at step {steps}: {message}", file=sys.stderr)
        if result.status == "fail" or self.stop_on == "warn":
            self._must_stop |= self.stop_on != "never"
