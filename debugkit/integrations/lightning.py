"""A callback that judges what a Lightning trainer fits, and watches it while it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from debugkit.config import Config
from debugkit.errors import UsageError
from debugkit.integrations.loop_guard import Gate, LoopGuard
from debugkit.report import Report
from debugkit.target import Target
from debugkit.watch.session import Watch

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise UsageError(
        'the callback for Lightning needs `lightning`: `pip install "debugkit[lightning]"`'
    ) from error


class DebugkitCallback(Callback):
    """Runs the checklist before the first step of ``trainer.fit``, and watches its loop until the last::

        trainer = Trainer(callbacks=[DebugkitCallback(stop_on_fail=True)])
        trainer.fit(module, loader)

    Training itself is as without, bit for bit. Both reports go to stderr, each once: that of the gate before the
    first step, that of the loop when training ends, also if it ends with an error.

    Args:
        gate: ``"fail"`` lets ``fit`` raise :class:`debugkit.ChecklistFailed` when the checklist fails,
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

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Run the checklist, then begin to watch."""
        self._guard.begins(
            lambda: Target.from_lightning(pl_module, trainer=trainer),
            pl_module,
            trainer.optimizers,
            [config.scheduler for config in trainer.lr_scheduler_configs],
            prints=trainer.is_global_zero,
        )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End training if a check has failed and that was asked for."""
        if self._guard.failed and self._stop_on_fail:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop watching and print the report."""
        self._guard.ends()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching and print what was seen before the error."""
        self._guard.ends(exception)
