"""A callback that judges what a ``transformers.Trainer`` trains, and watches it while it trains."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from debugkit.config import Config
from debugkit.errors import UsageError
from debugkit.integrations.loop_guard import Gate, LoopGuard
from debugkit.report import Report
from debugkit.target import Target
from debugkit.watch.session import Watch


class DebugkitCallback(TrainerCallback):
    """Runs the checklist before the first step of a Trainer, and watches its loop until the last::

        trainer.add_callback(DebugkitCallback(stop_on_fail=True))
        trainer.train()

    Training itself is as without, bit for bit. Both reports go to stderr, each once: that of the gate before the
    first step, that of the loop when training ends, also if it ends with an error.

    Args:
        gate: ``"fail"`` lets ``train()`` raise :class:`debugkit.ChecklistFailed` when the checklist fails,
            ``"report"`` only prints the report, ``None`` leaves the checklist out.
        stop_on_fail: end training as soon as a check of the loop fails.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`.
        log: where metrics go, as for :func:`debugkit.watch`; one process writes them.
        log_every: optimizer steps from one look to the next.
        samples: sample predictions at each look.

    Raises:
        UsageError: an argument is not valid.
    """

    def __init__(
        self,
        *,
        gate: Gate = "fail",
        stop_on_fail: bool = False,
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        config: str | Path | Mapping[str, Any] | Config | None = None,
        log: Any = None,
        log_every: int = 50,
        samples: int = 0,
    ) -> None:
        self._guard = LoopGuard(gate, select, ignore, config, log=log, log_every=log_every, samples=samples)
        self._stop_on_fail = stop_on_fail

    @property
    def report(self) -> Report | None:
        """What the gate found and what was seen of the loop so far; ``None`` before training."""
        return self._guard.report

    @property
    def watch(self) -> Watch | None:
        """The watch of the latest training."""
        return self._guard.watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the checklist, then begin to watch."""
        optimizer = getattr(kwargs.get("optimizer"), "optimizer", kwargs.get("optimizer"))
        scheduler = getattr(kwargs.get("lr_scheduler"), "scheduler", kwargs.get("lr_scheduler"))

        def target() -> Target:
            made = Target.from_trainer(self._trainer())
            return dataclasses.replace(made, optimizer=optimizer, scheduler=scheduler)

        self._guard.begins(
            target,
            kwargs["model"],
            [] if optimizer is None else [optimizer],
            [] if scheduler is None else [scheduler],
            prints=state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training if a check has failed and that was asked for."""
        if self._guard.failed and self._stop_on_fail:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching and print the report."""
        self._guard.ends()

    def _trainer(self) -> Trainer:
        """The trainer at work that holds this callback; the Trainer hands its callbacks all but itself."""
        frame = sys._getframe(1)
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, Trainer) and self in caller.callback_handler.callbacks:
                return caller
            frame = frame.f_back  # type: ignore[assignment]
        raise UsageError("`DebugkitCallback` is called by no `Trainer`; add it with `trainer.add_callback`")
