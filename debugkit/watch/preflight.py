"""The checklist on the first iteration of a loop, just after its first backward."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from debugkit.config import Config
from debugkit.errors import Unavailable, one_line
from debugkit.evidence import COSTS
from debugkit.registry import Registry
from debugkit.report import Report, Result
from debugkit.runner import OnEvent, Run
from debugkit.target import Target
from debugkit.watch.first_iteration import FirstIteration
from debugkit.watch.optimizer_track import OptimizerTrack
from debugkit.watch.processes import at_rest, why_not_alone
from debugkit.watch.seen_step import SeenStep, model_of

SECONDS = 60.0

_OF_DATA = ("data", "tokenizer")


@dataclass
class Preflight:
    """What is run, and what came of it.

    Attributes:
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: its budget, where it has none 60 s, and its largest cost, at most ``backward``, hold here.
        registry: the checks to choose from.
        on_event: as for :class:`debugkit.runner.Run`.
        results: what was judged; checks that found nothing to look at are left out.
        notices: what to know about it.
    """

    select: Iterable[str] | str | None
    ignore: Iterable[str] | str | None
    config: Config
    registry: Registry
    on_event: OnEvent | None = None
    results: tuple[Result, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def _left_out(self) -> tuple[str, ...]:
        """A step that was rebuilt may not fit every batch, for which the script is not to blame."""
        return ("skip", "error") if self._rebuilt else ("skip",)

    _rebuilt = False

    def run(
        self,
        first: FirstIteration,
        tracks: Iterable[OptimizerTrack],
        schedulers: Iterable[Any],
        name: str | None,
    ) -> None:
        """Judge the first iteration; what goes wrong is a notice."""
        start = time.perf_counter()
        try:
            target, why, families = _target(first, list(tracks), list(schedulers), name)
            self._rebuilt = isinstance(target.training_step, SeenStep) or target.loss_fn is not None
            report = self._judge(target, families)
        except Unavailable as refusal:
            self.notices = (f"no preflight: {refusal}",)
            return
        except Exception as error:
            self.notices = (f"the preflight ended early: {one_line(error)}",)
            return
        if report.interrupted:
            raise KeyboardInterrupt
        self.results = tuple(result for result in report.results if result.status not in self._left_out)
        took = f"{time.perf_counter() - start:.1f} s"
        told = f"preflight: {len(self.results)} checks judged the first iteration in {took}"
        lost = sum(result.status == "error" for result in report.results)
        if why:
            told += f"; its loss was not looked into: {why}"
        elif lost and "error" in self._left_out:
            told += f"; {lost} others could not run the script's step on other batches"
        self.notices = (told, *report.notices)

    def _judge(self, target: Target, ignored: tuple[str, ...]) -> Report:
        cost = min(self.config.max_cost, "backward", key=COSTS.index)
        budget = min(self.config.budget or SECONDS, SECONDS)
        options: dict[str, Any] = {} if self.on_event is None else {"on_event": self.on_event}
        return Run(
            target,
            select=self.select,
            ignore=[*_listed(self.ignore), *ignored],
            config=self.config.model_copy(update={"max_cost": cost, "budget": budget}),
            registry=self.registry,
            **options,
        ).execute()


def _listed(names: Iterable[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _target(
    first: FirstIteration, tracks: list[OptimizerTrack], schedulers: list[Any], name: str | None
) -> tuple[Target, str | None, tuple[str, ...]]:
    """The target, why it has no step, and the families that can't be judged.

    Raises:
        Unavailable: there is no model to look at.
    """
    if (target := _target_of_library()) is not None:
        if (shared := why_not_alone(target.model)) is not None:
            return at_rest(target), shared, ()
        return target, None, ()
    model = model_of(first)
    step, why = None, None
    try:
        if (shared := why_not_alone(model)) is not None:
            raise Unavailable(shared)
        step = SeenStep.of(first, model)
        step.prove(name)
    except Unavailable as refusal:
        step, why = None, str(refusal)
    optimizer, scheduler = _optimizer(model, tracks, schedulers)
    facts: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler, "name": name}
    if step is None:
        return Target(model, **facts), why, ()
    facts |= {
        "accumulation_steps": step.accumulation_steps,
        "precision": step.autocast,
        "tokenizer": _tokenizer(),
    }
    loader = step.loader if _can_be_read_again(step.loader) else None
    batches = loader if loader is not None else [step.batch]
    families = () if loader is not None else _OF_DATA
    if step.own_loss:
        return Target(model, batches, **facts), None, families
    if (loss_fn := step.loss_fn()) is not None:
        return Target(model, batches, loss_fn=loss_fn, **facts), None, families
    return Target(model, batches, training_step=step, **facts), None, families


def _optimizer(
    model: torch.nn.Module, tracks: list[OptimizerTrack], schedulers: list[Any]
) -> tuple[Any, Any]:
    """The one optimizer that holds parameters of the model, and its scheduler."""
    own = {id(parameter) for parameter in model.parameters()}
    holding = [track for track in tracks if track.ids & own]
    if len(holding) != 1 or (optimizer := holding[0].ref()) is None:
        return None, None
    theirs = [one for one in schedulers if getattr(one, "optimizer", None) is optimizer]
    return optimizer, theirs[0] if len(theirs) == 1 else None


def _can_be_read_again(loader: Any) -> bool:
    """Whether a loader that is being read can be iterated a second time meanwhile."""
    return (
        type(loader) is DataLoader
        and not loader.persistent_workers
        and not isinstance(loader.dataset, IterableDataset)
    )


def _trainer_at_work(module_name: str) -> Any:
    """The ``Trainer`` of a library's module whose step is running."""
    module = sys.modules.get(module_name)
    frame = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_code.co_filename == module.__file__:  # type: ignore[union-attr]
            found = frame.f_locals.get("self")
            if isinstance(found, module.Trainer):  # type: ignore[union-attr]
                return found
        frame = frame.f_back
    return None


def _target_of_library() -> Target | None:
    """The target of transformers' or Lightning's trainer, if one is at work that runs the steps itself."""
    if (trainer := _trainer_at_work("transformers.trainer")) is not None:
        return Target.from_trainer(trainer)
    for package in ("lightning.pytorch", "pytorch_lightning"):
        trainer = _trainer_at_work(f"{package}.trainer.trainer")
        if trainer is not None and trainer.training and trainer.lightning_module.automatic_optimization:
            return Target.from_lightning(trainer.lightning_module, trainer=trainer)
    return None


def _tokenizer() -> Any:
    """The tokenizer of the program, if it has exactly one."""
    module = sys.modules.get("transformers.tokenization_utils_base")
    if module is None:
        return None
    base = module.PreTrainedTokenizerBase
    found = [value for value in gc.get_objects() if issubclass(type(value), base)]
    return found[0] if len(found) == 1 else None
