"""Running the scripts beside this file, with and without a watch, in this process."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from debugkit.report import Report
from debugkit.watch.program import Program
from debugkit.watch.script import run_file

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Outcome:
    """What a program printed, what ended it, and what the watch says."""

    printed: str
    error: str | None
    report: Report | None
    first_seen: dict[str, int]

    @property
    def loud(self) -> dict[str, str]:
        """The checks that are not quiet, but for the one that depends on what else the machine does."""
        assert self.report is not None
        return {
            result.check: result.status
            for result in self.report.results
            if result.status in ("warn", "fail", "error") and result.check != "step-time"
        }


@contextlib.contextmanager
def own_process() -> Iterator[io.StringIO]:
    """Put back what a program changes in this process; gives what it prints."""
    argv, path, main = sys.argv[:], sys.path[:], sys.modules["__main__"]
    printed = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(io.StringIO()),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(action="ignore"),
        ):
            yield printed
    finally:
        torch.set_grad_enabled(True)
        sys.argv[:], sys.path[:] = argv, path
        sys.modules["__main__"] = main


def watched(script: str, *arguments: str) -> Outcome:
    """Run a script under watch."""
    program = Program(str(SCRIPTS / script), arguments, quiet=True)
    with own_process() as printed:
        ended = program.run()
    assert program.watch is not None
    assert program.watch.recorder.fault is None
    return Outcome(printed.getvalue(), repr(ended), program.report, program.watch.first_seen)


def plain(script: str, *arguments: str) -> Outcome:
    """Run a script as it is."""
    error: BaseException | None = None
    with own_process() as printed:
        try:
            run_file(str(SCRIPTS / script), arguments)
        except BaseException as raised:
            error = raised
    return Outcome(printed.getvalue(), repr(error), None, {})
