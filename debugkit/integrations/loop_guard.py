"""What the callbacks of training libraries share: a gate before the first step, a watch until the last."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from debugkit.config import Config
from debugkit.errors import UsageError
from debugkit.gate import stop_unless_clean
from debugkit.render.text import print_report
from debugkit.report import Report, Result
from debugkit.runner import run
from debugkit.target import Target
from debugkit.watch.processes import at_rest, why_not_alone
from debugkit.watch.session import Watch
from debugkit.watch.sinks import openers

Gate = Literal["fail", "report"] | None


class LoopGuard:
    """Judges the objects of a training before it begins, and its loop while it runs.

    Args:
        gate: ``"fail"`` runs the checklist first and raises when it fails, ``"report"`` only prints it, ``None``
            leaves it out.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`.
        logs: ``log``, ``log_every`` and ``samples``, as for :func:`debugkit.watch`.

    Attributes:
        checklist: what the gate found.
        watch: the watch of the latest training.
        failed: whether a check of the loop has failed.

    Raises:
        UsageError: an argument is not valid.
    """

    def __init__(
        self,
        gate: Gate,
        select: Iterable[str] | str | None,
        ignore: Iterable[str] | str | None,
        config: str | Path | Mapping[str, Any] | Config | None,
        **logs: Any,
    ) -> None:
        if gate not in ("fail", "report", None):
            raise UsageError(f'`gate` is {gate!r}; it must be "fail", "report" or None')
        self._gate = gate
        self._wanted: dict[str, Any] = {"select": select, "ignore": ignore, "config": Config.read(config)}
        openers(logs.get("log"))
        self._logs = logs
        self._prints = True
        self.checklist: Report | None = None
        self.watch: Watch | None = None
        self.failed = False

    def begins(
        self,
        target: Callable[[], Target],
        model: torch.nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        schedulers: Iterable[Any],
        *,
        prints: bool,
    ) -> None:
        """Training is about to begin.

        Args:
            target: makes the target of the gate.
            model: what is trained.
            optimizers: what trains it.
            schedulers: what drives their learning rates.
            prints: whether this process reports.

        Raises:
            ChecklistFailed: the gate does not let training begin.
        """
        self._end(None)
        self.checklist, self.watch, self.failed, self._prints = None, None, False, prints
        if self._gate is not None:
            self._judge(target())
        self.watch = Watch(
            [model],
            optimizers,
            name=type(model).__name__,
            on_finding=self._found,
            **self._wanted,
            **(self._logs if prints else {}),
        )
        self.watch.__enter__()
        for scheduler in schedulers:
            self.watch.recorder.scheduler_made(scheduler)
        atexit.register(self._at_exit)

    def ends(self, error: BaseException | None = None) -> None:
        """Training has ended: stop watching and print what the loop did; again has no effect."""
        watch = self.watch
        if watch is None or watch.recorder.finished:
            return
        self._end(error)
        if self._prints and watch.report.results:
            print_report(watch.report, sys.stderr)

    @property
    def report(self) -> Report | None:
        """What the gate found and what was seen of the loop so far; ``None`` before training."""
        before, during = self.checklist, self.watch.report if self.watch is not None else None
        if before is None or during is None:
            return during or before
        results = sorted((*before.results, *during.results), key=lambda one: (one.family, one.check))
        return before.model_copy(
            update={
                "results": tuple(results),
                "notices": (*before.notices, *during.notices),
                "seconds": before.seconds + during.seconds,
            }
        )

    def _judge(self, target: Target) -> None:
        target = target if why_not_alone(target.model) is None else at_rest(target)
        self.checklist = run(target, **self._wanted)
        if not self.checklist.results:
            return
        if self._prints:
            print_report(self.checklist, sys.stderr)
        if self._gate == "fail":
            stop_unless_clean(self.checklist, self._wanted["config"])

    def _found(self, result: Result, steps: int) -> None:
        self.failed |= result.status == "fail"

    def _end(self, error: BaseException | None) -> None:
        if self.watch is not None:
            self.watch.close(error)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        """The program ends within training, for which some libraries tell their callbacks nothing."""
        self.ends(getattr(sys, "last_value", None))
