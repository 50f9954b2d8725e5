"""A watch: from its beginning to its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from debugkit.config import Config
from debugkit.errors import UsageError, one_line, with_article
from debugkit.probes.loop_record import LoopRecord
from debugkit.registry import Registry, load
from debugkit.report import Report, Result
from debugkit.runner import OnEvent, Run
from debugkit.watch.first_iteration import FirstIteration
from debugkit.watch.metrics import MetricsLog
from debugkit.watch.patches import Patches
from debugkit.watch.preflight import Preflight
from debugkit.watch.recorder import Recorder
from debugkit.watch.sinks import openers

OnFinding = Callable[[Result, int], object]

_FIRST_LOOKS = (3, 6, 10, 15, 20)
_SPACING = 1.6
_QUIET_LOOK = 20


def watch(
    model: torch.nn.Module | Iterable[torch.nn.Module] | None = None,
    *,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    config: str | Path | Mapping[str, Any] | Config | None = None,
    name: str | None = None,
    preflight: bool = True,
    log: Any = None,
    log_every: int = 50,
    samples: int = 0,
) -> Watch:
    """Watch the training that happens inside a ``with`` block; its ``report`` tells what was seen.

    Models and optimizers are found as they are used. Those that exist before the block begins are known from the
    start if they are passed: an optimizer that never steps is not seen otherwise::

        with debugkit.watch(model, optimizer=optimizer) as watch:
            train(model, optimizer)
        print(watch.report.status)

    Args:
        model: what is trained; several in a list.
        optimizer: what trains it; several in a list.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`.
        name: how the report calls the loop.
        preflight: run the checklist, as :func:`debugkit.run` does but for the training probes, on the first
            iteration: just after its first backward, for at most a minute.
        log: where metrics go: a file for JSON lines, ``"tensorboard:DIR"``, ``"wandb"`` or ``"wandb:PROJECT"``, a
            ``SummaryWriter`` or a run of wandb that exists, a :class:`debugkit.watch.sinks.Sink`; several in a list.
        log_every: optimizer steps from one look to the next.
        samples: sample predictions at each look, of batches that the loop trains on anyway.

    Raises:
        UsageError: an argument has the wrong type, or the request is not valid.
    """
    models = _listed(model, torch.nn.Module, "model")
    optimizers = _listed(optimizer, torch.optim.Optimizer, "optimizer")
    if name is None and models:
        name = type(models[0]).__name__
    return Watch(
        models,
        optimizers,
        select=select,
        ignore=ignore,
        config=config,
        name=name,
        preflight=preflight,
        log=log,
        log_every=log_every,
        samples=samples,
    )


class Watch:
    """A watch over what runs while it is entered. It sees the thread that enters it, or else the first that trains.

    Watches do not nest: the inner one sees nothing, and its report says so.

    Args:
        models: models that exist already.
        optimizers: optimizers that exist already.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`.
        name: how the report calls the loop.
        registry: the checks to choose from; found by default.
        steps: stop looking after this many optimizer steps.
        on_finding: told of each result that warns or fails, once per check and status, with the number of
            optimizer steps.
        on_step: called after each optimizer step with the number of steps.
        preflight: run the checklist on the first iteration, just after its first backward.
        on_event: told of the progress of that, as for :class:`debugkit.runner.Run`.
        log: as for :func:`watch`.
        log_every: as for :func:`watch`.
        samples: as for :func:`watch`.

    Attributes:
        first_seen: by check, after how many optimizer steps it first warned or failed.
    """

    def __init__(
        self,
        models: Iterable[torch.nn.Module] = (),
        optimizers: Iterable[torch.optim.Optimizer] = (),
        *,
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        config: str | Path | Mapping[str, Any] | Config | None = None,
        name: str | None = None,
        registry: Registry | None = None,
        steps: int | None = None,
        on_finding: OnFinding | None = None,
        on_step: Callable[[int], object] | None = None,
        preflight: bool = False,
        on_event: OnEvent | None = None,
        log: Any = None,
        log_every: int = 50,
        samples: int = 0,
    ) -> None:
        destinations = openers(log)
        self._config = Config.read(config)
        self._steps = steps
        self._on_finding = on_finding
        self._on_step = on_step
        self.recorder = Recorder(name)
        self._metrics = MetricsLog(destinations, self.recorder, log_every, samples) if destinations else None
        self._patches = Patches(self.recorder)
        self._next_look = _FIRST_LOOKS[0]
        self._next_quiet_look = _QUIET_LOOK
        self._said: dict[str, str] = {}
        self.first_seen: dict[str, int] = {}
        self._report: Report | None = None
        registry = registry if registry is not None else load(self._config.load)
        self._plan = Run(
            LoopRecord(name), select=select, ignore=ignore, config=self._config, registry=registry
        )
        self._preflight = Preflight(select, ignore, self._config, registry, on_event) if preflight else None
        self._given = list(models), list(optimizers)

    def __enter__(self) -> Watch:
        if Patches.at_work is not None:
            self.recorder.fault = (
                "nothing was watched: another watch is at work in this process, and has the report"
            )
            self.recorder.stop()
            return self
        for model in self._given[0]:
            self.recorder.names.learn(model)
        for optimizer in self._given[1]:
            self.recorder.optimizer_made(optimizer)
        self._given = [], []
        self.recorder.on_step = self._stepped
        self.recorder.on_backward = self._passed_back
        if self._preflight is not None:
            self.recorder.first, self.recorder.on_first = FirstIteration(), self._look_into_first
        self._patches.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Stop watching and make the report; again has no effect."""
        self._patches.remove()
        recorder = self.recorder
        if recorder.finished:
            return
        if error is not None and not isinstance(error, SystemExit | GeneratorExit):
            recorder.error = one_line(error)
        if isinstance(error, Exception) or (isinstance(error, SystemExit) and error.code):
            recorder.breaks_off()
        recorder.finished = True
        recorder.stop()
        self._report = self._judge(thorough=True)
        if self._metrics is not None:
            self._metrics.close(self._report)
            self._report = self._report.model_copy(
                update={"notices": (*self._report.notices, *self._metrics.notices)}
            )

    @property
    def report(self) -> Report:
        """What was seen; while the loop runs, so far."""
        if self._report is not None:
            return self._report
        return self._judge(thorough=True)

    @property
    def record(self) -> LoopRecord:
        """What the checks read."""
        return self.recorder.record()

    def _stepped(self, steps: int) -> None:
        if self._metrics is not None:
            self._metrics(steps)
        if self._steps is not None and steps >= self._steps:
            self._judge(thorough=True)
            self.recorder.stop()
        elif steps >= self._next_look:
            later = [look for look in _FIRST_LOOKS if look > steps]
            self._next_look = later[0] if later else int(steps * _SPACING)
            self._judge(thorough=False)
        if self._on_step is not None:
            self._on_step(steps)

    def _look_into_first(self, first: FirstIteration) -> None:
        if self._preflight is None:
            return
        recorder = self.recorder
        self._preflight.run(first, recorder.tracks, recorder.schedulers, recorder.name)
        self._tell(self._preflight.results)

    def _passed_back(self, backwards: int) -> None:
        """Look also where no step comes."""
        if backwards == 1 and self._preflight is not None and self._on_step is not None:
            self._on_step(self.recorder.steps)
        if backwards >= self._next_quiet_look:
            self._next_quiet_look = int(backwards * _SPACING)
            if self.recorder.since_step >= _QUIET_LOOK:
                self._judge(thorough=False)

    def _judge(self, *, thorough: bool) -> Report:
        record = self.recorder.record(thorough=thorough)
        report = self._plan.again(record).execute()
        if self.recorder.fault is not None:
            report = report.model_copy(update={"notices": (*report.notices, self.recorder.fault)})
        if self.recorder.elsewhere:
            told = (
                f"{self.recorder.elsewhere} optimizer steps ran in another thread than the one that is watched; enter "
                "the watch in the thread that trains"
            )
            report = report.model_copy(update={"notices": (*report.notices, told)})
        if record.error is not None:
            ended = f"the loop ended after {record.steps} optimizer steps with {record.error}"
            report = report.model_copy(update={"notices": (*report.notices, ended)})
        self._tell(report.results)
        if self._preflight is None:
            return report
        before = self._preflight
        results = sorted((*before.results, *report.results), key=lambda one: (one.family, one.check))
        return report.model_copy(
            update={"results": tuple(results), "notices": (*before.notices, *report.notices)}
        )

    def _tell(self, results: Iterable[Result]) -> None:
        steps = self.recorder.steps
        for result in results:
            if result.status in ("warn", "fail") and self._said.get(result.check) != result.status:
                self._said[result.check] = result.status
                self.first_seen.setdefault(result.check, steps)
                if self._metrics is not None:
                    self._metrics.finding(result, steps)
                if self._on_finding is not None:
                    self._on_finding(result, steps)


def _listed(value: Any, kind: type[Any], name: str) -> list[Any]:
    values = [] if value is None else [value] if isinstance(value, kind) else value
    if not isinstance(values, Iterable):
        raise UsageError(
            f"`{name}` must be a torch {kind.__name__}, not {with_article(type(value).__name__)}"
        )
    values = list(values)
    for part in values:
        if not isinstance(part, kind):
            raise UsageError(
                f"`{name}` must be a torch {kind.__name__}, not {with_article(type(part).__name__)}"
            )
    return values
