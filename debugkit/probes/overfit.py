"""Short training runs on a few samples: can this model, with this loss and this data, learn at all?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from debugkit.ambiguity import blind_errors, unavoidable_errors
from debugkit.batch import size, to_device
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.objective import Score, Watch
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, backward, run_step
from debugkit.sandbox import Sandbox, own_steps, seed_everything
from debugkit.schedule import peak_rates, twin, unwrap
from debugkit.subset import few_samples
from debugkit.target import Target

Outcome = Literal["memorised", "stalled", "falling", "diverged", "out of time"]

RATES = ((1e-3, 1), (1e-4, 1), (1e-2, 1), (3e-3, 3))
_PATIENCE = 120
_LOSS_GONE = 0.9
_ALL_RIGHT = 0.95
_LEARNING = 0.1


@dataclass(frozen=True)
class Curve:
    """One short training run.

    Attributes:
        optimizer: such as ``AdamW, lr 0.001``.
        outcome: how it ended.
        scores: one per step, taken before the step.
        progress: per step, 0 for the best constant prediction and 1 for a perfect one.
        seconds: wall time.
    """

    optimizer: str
    outcome: Outcome
    scores: tuple[Score, ...] = field(repr=False)
    progress: tuple[float, ...] = field(repr=False)
    seconds: float

    @property
    def best(self) -> float:
        """The furthest progress."""
        return max((p for p in self.progress if math.isfinite(p)), default=0.0)

    @property
    def first(self) -> Score:
        """The score before the first step."""
        return self.scores[0]

    @property
    def last(self) -> Score:
        """The score at the end."""
        return self.scores[-1]


@dataclass(frozen=True)
class OverfitRuns:
    """Runs over the same few samples, each from the model as given.

    Randomness is the same in every step of a run (dropout is off, other noise is frozen by the seed), and
    weight decay is off, so that nothing but the model, the loss and the data is in question.

    Attributes:
        samples: how many samples are learned.
        trainable: number of trainable values in the model.
        unavoidable: errors that no model can avoid, because identical inputs have different targets.
        runs: AdamW at one learning rate after another, until one memorises the samples.
        own: the user's optimizer settings at their peak learning rates, where one run memorised.
        covered: how many trainable tensors the user's optimizer holds.
        tensors: how many trainable tensors there are.
    """

    cost: ClassVar[Cost] = "training"
    samples: int
    trainable: int
    unavoidable: int
    runs: tuple[Curve, ...]
    own: Curve | None
    covered: int
    tensors: int

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
        trial = _Trial(target, sandbox, parts, parameters, unavoidable)
        if not trial.works():
            trial = _Trial(target, sandbox, parts := [to_device(batches.first, target.device)], parameters, 0)
        end = time.monotonic() + min(max_seconds, deadline.seconds_left)
        runs: list[Curve] = []
        for rate, length in RATES:
            if sum(run.outcome in ("stalled", "diverged") for run in runs) >= 2 and length > 1:
                break
            adam = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
            runs.append(trial.run(f"AdamW, lr {rate:g}", adam, max_steps * length, end, clip=1.0))
            if runs[-1].outcome in ("memorised", "out of time"):
                break
        own, held = None, _held(target, parameters)
        if target.optimizer is not None and runs[-1].outcome == "memorised" and held:
            end = time.monotonic() + min(own_seconds, deadline.seconds_left)
            own = trial.run_own(own_steps, end)
        return OverfitRuns(
            samples=sum(size(part) or 1 for part in parts),
            trainable=sum(p.numel() for p in parameters),
            unavoidable=trial.unavoidable,
            runs=tuple(runs),
            own=own,
            covered=len(held),
            tensors=len(parameters),
        )

    @property
    def memorised(self) -> Curve | None:
        """The run that memorised the samples."""
        return next((run for run in self.runs if run.outcome == "memorised"), None)

    @property
    def best(self) -> Curve:
        """The run that came furthest."""
        return max(self.runs, key=lambda run: run.best)


class _Trial:
    """The samples and the model that every run of one collection shares."""

    def __init__(
        self,
        target: Target,
        sandbox: Sandbox,
        parts: Sequence[Any],
        parameters: Sequence[torch.nn.Parameter],
        unavoidable: int,
    ) -> None:
        self._target = target
        self._sandbox = sandbox
        self._parts = parts
        self._parameters = parameters
        self.unavoidable = unavoidable
        self._main: int | None = None

    def works(self) -> bool:
        """Whether the step takes the samples: rows of a graph, say, can't be cut out."""
        try:
            with self._sandbox.probe():
                run_step(self._target, self._parts[0])
        except Broken:
            return False
        return True

    def run(
        self,
        name: str,
        optimizer: Any,
        steps: int,
        end: float,
        clip: float | None = None,
        until: float = math.inf,
    ) -> Curve:
        """Train until the samples are memorised, or nothing more is to be learned from going on.

        Args:
            name: how the curve is called.
            optimizer: over the model's own parameters.
            steps: at most this many.
            end: the moment on the monotonic clock at which to stop.
            clip: largest gradient norm.
            until: stop as soon as the loss has fallen by this share for ten steps on end.
        """
        start = time.monotonic()
        scores: list[Score] = []
        progress: list[float] = []
        outcome: Outcome = "falling"
        with self._sandbox.probe():
            if not self._sandbox.training[""]:
                self._target.model.train()
            for _ in range(steps):
                scores.append(self._pass())
                progress.append(scores[-1].progress(scores[0], self.unavoidable))
                if ended := self._ended(scores, progress, end):
                    outcome = ended
                    break
                if len(scores) > 10 and all(_fallen(score, scores[0]) >= until for score in scores[-10:]):
                    break
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(self._parameters, clip)
                with own_steps():
                    optimizer.step()
        if outcome in ("stalled", "falling") and scores[-1].by_errors(self.unavoidable) >= _ALL_RIGHT:
            outcome = "memorised"
        return Curve(name, outcome, tuple(scores), tuple(progress), time.monotonic() - start)

    def run_own(self, steps: int, end: float) -> Curve | None:
        """The user's optimizer over the model's own tensors; ``None`` where it needs more than ``step()``."""
        original = unwrap(self._target.optimizer)
        double = twin(original, {id(p) for p in self._parameters})
        peaks = dict(
            zip(
                map(id, original.param_groups),
                peak_rates(original, self._target.scheduler, self._target.training_steps),
                strict=True,
            )
        )
        kept = [
            g
            for g in original.param_groups
            if any(id(p) in {id(q) for q in self._parameters} for p in g["params"])
        ]
        for group, origin in zip(double.param_groups, kept, strict=True):
            group["lr"] = peaks[id(origin)]
        rates = sorted({peaks[id(group)] for group in kept})
        shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
        try:
            return self.run(f"{type(original).__name__}, lr {shown}", double, steps, end, until=_LEARNING)
        except (TypeError, NotImplementedError):
            return None

    def _pass(self) -> Score:
        scores = []
        for parameter in self._target.model.parameters():
            parameter.grad = None
        for part in self._parts:
            seed_everything(0)
            watch = Watch(self._main)
            with watch:
                outcome = run_step(self._target, part)
            scores.append(watch.score(outcome.loss))
            if self._main is None:
                self._main = watch.main
                rows = watch.rows()
                blind = blind_errors(part, *rows) if rows is not None else 0
                self.unavoidable = max(self.unavoidable, blind * len(self._parts))
            if not outcome.loss.requires_grad:
                raise Broken("the loss lost its graph while the model was trained on a few samples")
            with watch:
                backward(outcome.loss / len(self._parts))
        return Score.total(scores)

    def _ended(self, scores: Sequence[Score], progress: Sequence[float], end: float) -> Outcome | None:
        if not math.isfinite(scores[-1].loss):
            return "diverged"
        if len(scores) >= 2 and all(self._knows(score, scores[0]) for score in scores[-2:]):
            return "memorised"
        if time.monotonic() > end:
            return "out of time"
        return "stalled" if _has_stalled(progress) else None

    def _knows(self, score: Score, first: Score) -> bool:
        gone = score.by_value(first)
        if gone >= _LOSS_GONE:
            return score.kind != "unknown" or score.value >= 0
        return score.by_errors(self.unavoidable) >= _ALL_RIGHT and not gone < 0.5


def _has_stalled(progress: Sequence[float]) -> bool:
    """Whether the last steps brought nothing, measured against the best stretch of as many steps before.

    A run that moves slowly but steadily, towards targets far away say, has not stalled.
    """
    if len(progress) <= _PATIENCE:
        return False
    stretch = _PATIENCE // 2
    recent = max(progress) - max(progress[:-stretch])
    before = max(progress[end] - progress[end - stretch] for end in range(stretch, len(progress) - stretch))
    return recent < 0.01 and (recent < 0.25 * before or max(recent, before) < 1e-6)


def _fallen(score: Score, first: Score) -> float:
    return (first.value - score.value) / abs(first.value) if first.value else 0.0


def _held(target: Target, parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    if target.optimizer is None:
        return []
    held = {id(p) for group in unwrap(target.optimizer).param_groups for p in group["params"]}
    return [p for p in parameters if id(p) in held]
