"""A callback that watches a ``transformers.Trainer`` while it trains."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from debugkit.config import Config
from debugkit.render.text import print_report
from debugkit.report import Report, Result
from debugkit.watch.session import Watch


class DebugkitCallback(TrainerCallback):
    """Watches the loop of a Trainer and prints the report when training ends::

        trainer.add_callback(DebugkitCallback(stop_on_fail=True))
        trainer.train()

    Training itself is as without, bit for bit. To run the checklist before it, call
    ``debugkit.gate(Target.from_trainer(trainer))`` first.

    Args:
        stop_on_fail: end training as soon as a check fails.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`.

    Attributes:
        watch: the watch of the latest training.
    """

    def __init__(
        self,
        *,
        stop_on_fail: bool = False,
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        config: str | Path | Mapping[str, Any] | Config | None = None,
    ) -> None:
        self._stop_on_fail = stop_on_fail
        self._wanted: dict[str, Any] = {"select": select, "ignore": ignore, "config": config}
        self._failed = False
        self.watch: Watch | None = None

    @property
    def report(self) -> Report | None:
        """What was seen so far; ``None`` before training."""
        return self.watch.report if self.watch is not None else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        self._close()
        self._failed = False
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        self.watch = Watch(
            [model] if model is not None else [],
            name=type(model).__name__,
            on_finding=self._found,
            **self._wanted,
        )
        self.watch.__enter__()
        inner = getattr(optimizer, "optimizer", optimizer)
        if inner is not None:
            self.watch.recorder.optimizer_made(inner)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training if a check has failed and that was asked for."""
        if self._failed and self._stop_on_fail:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching and print the report."""
        self._close()
        if self.report is not None:
            print_report(self.report, sys.stderr)

    def _close(self) -> None:
        if self.watch is not None:
            self.watch.close()

    def _found(self, result: Result, steps: int) -> None:
        self._failed |= result.status == "fail"
