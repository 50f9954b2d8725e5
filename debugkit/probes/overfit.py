"""Short training runs on a few samples: can this model, with this loss and this data, learn at all?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from debugkit.data.ambiguity import unavoidable_errors
from debugkit.data.batch import size, to_device
from debugkit.data.subset import few_samples
from debugkit.errors import Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.trials.curve import Curve
from debugkit.trials.repair import OwnOptimizer, Repair
from debugkit.trials.schedule import unwrap
from debugkit.trials.trial import RefusedError, Trial

RATES = ((1e-3, 1), (1e-4, 1), (1e-2, 1), (3e-3, 3))


@dataclass(frozen=True)
class OverfitRuns:
    """Runs over the same few samples, each from the model as given.

    Randomness is the same in every step of a run (dropout is off, other noise is frozen by the seed), and
    weight decay is off, so that nothing but the model, the loss and the data is in question.

    Attributes:
        samples: how many samples are learned.
        trainable: number of trainable values in the model.
        values: number of values in all the model's parameters.
        unavoidable: errors that no model can avoid, because identical inputs have different targets.
        runs: AdamW at one learning rate after another, until one memorises the samples.
        own: the user's optimizer settings at their peak learning rates, where one run memorised.
        repair: the change that makes them learn, where they end no better than a constant prediction.
        refusal: why the user's optimizer could not be tried.
        covered: how many trainable tensors the user's optimizer holds; ``None`` without an optimizer.
        tensors: how many trainable tensors there are.
        call: name and source line of the loss call that was scored.
        lowers_likelihood: whether the loss is a hand-written log-likelihood of the labels without its minus.
    """

    cost: ClassVar[Cost] = "training"
    samples: int
    trainable: int
    values: int
    unavoidable: int
    runs: tuple[Curve, ...]
    own: Curve | None
    repair: Repair | None
    refusal: str | None
    covered: int | None
    tensors: int
    call: tuple[str, str | None] | None
    lowers_likelihood: bool

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        deadline: Deadline,
        batches: Batches,
        step: TrainingStep,
        *,
        samples: Annotated[int, Field(ge=2, le=512, description="how many samples to memorise")] = 16,
        max_steps: Annotated[
            int,
            Field(ge=10, description="optimizer steps per run; the last one may take three times as many"),
        ] = 300,
        max_seconds: Annotated[float, Field(gt=0, description="wall time of all AdamW runs together")] = 60.0,
        own_steps: Annotated[int, Field(ge=5, description="steps with the user's own optimizer")] = 100,
        own_seconds: Annotated[
            float, Field(gt=0, description="wall time of the user's own optimizer")
        ] = 20.0,
    ) -> OverfitRuns:
        """Train on copies of the values, then put them back.

        Raises:
            Unavailable: the loss can't be trained (see ``missing-gradients``), or a step is too slow to judge.
            Broken: the user's step raised.
        """
        if not step.has_graph or step.own_backward:
            raise Unavailable("the loss has no graph to train through; see `missing-gradients`")
        if all(g.missing or g.zero for g in step.gradients.values()):
            raise Unavailable(
                "every gradient is missing or zero; see `missing-gradients` and `logits-vs-probs`"
            )
        parts = [to_device(part, target.device) for part in few_samples(batches.items, samples)]
        parameters = [p for p in target.model.parameters() if p.requires_grad]
        sandbox.protect(target.model.parameters())
        unavoidable = sum(unavoidable_errors(part) for part in parts)
        trial = Trial(target, sandbox, parts, parameters, unavoidable)
        if not trial.works():
            trial = Trial(target, sandbox, parts := [to_device(batches.first, target.device)], parameters, 0)
        end = time.monotonic() + min(max_seconds, deadline.seconds_left)
        runs: list[Curve] = []
        for rate, length in RATES:
            if sum(run.outcome in ("stalled", "diverged") for run in runs) >= 2 and length > 1:
                break
            adam = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
            runs.append(trial.run(f"AdamW, lr {rate:g}", adam, max_steps * length, end, clip=1.0))
            if trial.lowers_likelihood or runs[-1].outcome in ("memorised", "out of time"):
                break
        own, repair, refusal = None, None, None
        held = _held(target, parameters)
        if held and runs[-1].outcome == "memorised":
            end = time.monotonic() + min(own_seconds, deadline.seconds_left)
            try:
                optimizer = OwnOptimizer(target, parameters, trial)
                own = optimizer.run(own_steps, end)
                repair = optimizer.repair(own, own_steps, end)
            except RefusedError as error:
                refusal = str(error)
        return OverfitRuns(
            samples=sum(size(part) or 1 for part in parts),
            trainable=sum(p.numel() for p in parameters),
            values=sum(p.numel() for p in target.model.parameters()),
            unavoidable=trial.unavoidable,
            runs=tuple(runs),
            own=own,
            repair=repair,
            refusal=refusal,
            covered=len(held) if held is not None else None,
            tensors=len(parameters),
            call=trial.call,
            lowers_likelihood=trial.lowers_likelihood,
        )

    @property
    def memorised(self) -> Curve | None:
        """The run that memorised the samples."""
        return next((run for run in self.runs if run.outcome == "memorised"), None)

    @property
    def best(self) -> Curve:
        """The run that came furthest."""
        return max(self.runs, key=lambda run: run.best)


def _held(target: Target, parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter] | None:
    """The parameters that the user's optimizer holds; ``None`` without an optimizer."""
    if target.optimizer is None:
        return None
    held = {id(p) for group in unwrap(target.optimizer).param_groups for p in group["params"]}
    return [p for p in parameters if id(p) in held]
