"""Controls for what a few memorised samples prove: the same labels without their inputs, or with noise for inputs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from debugkit.data.batch import size, split, tensors, to_device
from debugkit.data.controls import Parts
from debugkit.data.loaders import inner_loader
from debugkit.data.subset import few_samples
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.probes.batches import Batches
from debugkit.probes.overfit import RATES, OverfitRuns
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.root_call import RootCall
from debugkit.trials.blind import BlindRun, BlindTrial
from debugkit.trials.curve import Curve
from debugkit.trials.trial import Trial

_STEPS = 300


@dataclass(frozen=True)
class ControlRuns:
    """Runs beside those of :class:`OverfitRuns`, over the same few samples from the same values.

    Attributes:
        samples: how many samples are learned.
        blind: every row with the inputs of the first, where the real ones were memorised.
        noise: noise in the place of the inputs, where they were not.
        drawn: whether the rows of a batch are single draws from a data set.
        carrier: the input of the model that holds the labels, such as ``y``.
    """

    cost: ClassVar[Cost] = "training"
    samples: int
    blind: BlindRun | None
    noise: Curve | None
    drawn: bool
    carrier: str | None

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        deadline: Deadline,
        batches: Batches,
        step: TrainingStep,
        runs: OverfitRuns,
        *,
        max_seconds: Annotated[
            float, Field(gt=0, description="wall time of the control runs together")
        ] = 20.0,
    ) -> ControlRuns:
        """Train on copies of the values, then put them back.

        Raises:
            Unavailable: no labels beside the inputs, no verdict on the samples themselves that needs a control, or a
                step that refuses the inputs of the controls.
        """
        end = time.monotonic() + min(max_seconds, deadline.seconds_left)
        if runs.memorised is None and len(_stalled(runs)) < 2:
            raise Unavailable("the samples were neither memorised nor plainly not; see `overfit-samples`")
        parts = _parts(target, sandbox, batches, runs.samples)
        sandbox.protect(target.model.parameters())
        try:
            blind, noise = _controls(target, sandbox, parts, runs, end)
        except Broken as error:
            raise Unavailable(f"the step takes no other inputs for these labels: {error}") from error
        return ControlRuns(
            samples=sum(part.rows for part in parts),
            blind=blind,
            noise=noise,
            drawn=_is_drawn(target, batches),
            carrier=_carrier(target, batches, step),
        )


def _controls(
    target: Target, sandbox: Sandbox, parts: Sequence[Parts], runs: OverfitRuns, end: float
) -> tuple[BlindRun | None, Curve | None]:
    parameters = [p for p in target.model.parameters() if p.requires_grad]
    blind = BlindTrial(target, sandbox, parts, parameters)
    if runs.memorised is not None:
        return blind.run(_rate(runs, runs.memorised), _STEPS, end), None
    blind.require_labels()
    trial = Trial(target, sandbox, [part.noise() for part in parts], parameters, 0)
    best = max(_stalled(runs), key=lambda run: run.best)
    adam = torch.optim.AdamW(parameters, lr=_rate(runs, best), weight_decay=0.0)
    return None, trial.run("noise", adam, len(best.scores), end, clip=1.0)


def _stalled(runs: OverfitRuns) -> list[Curve]:
    return [run for run in runs.runs if run.outcome in ("stalled", "diverged")]


def _rate(runs: OverfitRuns, run: Curve) -> float:
    return RATES[next(number for number, each in enumerate(runs.runs) if each is run)][0]


def _parts(target: Target, sandbox: Sandbox, batches: Batches, samples: int) -> list[Parts]:
    """The samples of the runs; the whole first batch where the step takes nothing less."""
    few = [Parts(to_device(part, target.device)) for part in few_samples(batches.items, samples)]
    few.sort(key=lambda part: part.variety, reverse=True)
    try:
        with sandbox.probe():
            run_step(target, few[0].batch)
    except Broken:
        return [Parts(to_device(batches.first, target.device))]
    return few


def _is_drawn(target: Target, batches: Batches) -> bool:
    loader = inner_loader(target.train_loader)
    return loader is not None and (loader.batch_size or 0) > 1 and loader.batch_size == size(batches.first)


def _carrier(target: Target, batches: Batches, step: TrainingStep) -> str | None:
    if step.root_call is None:
        return None
    labels = [tensor for _, tensor in tensors(split(batches.first)[1])]
    return next(_equal_to(labels, RootCall.of(target.model, step.root_call).tensors), None)


def _equal_to(labels: list[torch.Tensor], given: Any) -> Iterator[str]:
    for path, tensor in given.items():
        if any(tensor.shape == one.shape and bool((tensor.cpu() == one.cpu()).all()) for one in labels):
            yield path
