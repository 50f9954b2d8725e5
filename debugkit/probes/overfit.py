"""Short training runs on a few samples: can this model, with this loss and this data, learn at all?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from debugkit.ambiguity import blind_errors, unavoidable_errors
from debugkit.batch import size, split, to_device
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost, Deadline
from debugkit.objective import Score, Watch
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, backward, run_step
from debugkit.sandbox import Sandbox, own_steps, seed_everything
from debugkit.schedule import peak_rates, twin, unwrap
from debugkit.subset import few_samples
from debugkit.target import Target

Outcome = Literal["memorised", "learning", "stalled", "falling", "diverged", "out of time"]
Setting = Literal["maximize", "weight_decay", "clip", "lr"]

RATES = ((1e-3, 1), (1e-4, 1), (1e-2, 1), (3e-3, 3))
_PATIENCE = 120
_LOSS_GONE = 0.9
_ALL_RIGHT = 0.95
_LEARNING = 0.1
_STANDING = 0.05
_RISEN = 0.2
_LUCKY = 0.5
_WARM_UP = 30
_SMALLER = 100.0


@dataclass(frozen=True)
class Curve:
    """One short training run.

    Attributes:
        optimizer: such as ``AdamW, lr 0.001``.
        outcome: how it ended; ``learning`` where it was ended because it plainly learns.
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

    @property
    def learns(self) -> bool:
        """Whether nothing was left to find out."""
        return self.outcome in ("memorised", "learning")

    @property
    def stands(self) -> bool:
        """Whether it ended no better than the best constant prediction."""
        ending = self.scores[-max(1, len(self.scores) // 10) :]
        gained = sum(score.gained(self.first) for score in ending) / len(ending)
        return self.outcome == "diverged" or (not self.learns and gained < _STANDING)

    @property
    def rises(self) -> bool:
        """Whether the loss went well above its start on the way."""
        return self.outcome == "diverged" or _has_risen(self.scores, _RISEN)


@dataclass(frozen=True)
class Repair:
    """One change with which the user's optimizer learns, where it does not as it is.

    Attributes:
        setting: what was changed: ``maximize`` and ``weight_decay`` off, the gradient clipped to a norm of 1, or
            a hundredth of the learning rate.
        curve: the run with the change.
    """

    setting: Setting
    curve: Curve


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
            if trial.lowers_likelihood or runs[-1].outcome in ("memorised", "out of time"):
                break
        own, repair, refusal = None, None, None
        held = _held(target, parameters)
        if held and runs[-1].outcome == "memorised":
            end = time.monotonic() + min(own_seconds, deadline.seconds_left)
            try:
                own = trial.run_own(own_steps, end)
                repair = trial.repair(own, own_steps, end)
            except _RefusedError as error:
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
        self.call: tuple[str, str | None] | None = None
        self.lowers_likelihood = False
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
        warm_up: int = 0,
        enough: Callable[[Sequence[Score]], bool] = lambda scores: False,
    ) -> Curve:
        """Train until the samples are memorised, or nothing more is to be learned from going on.

        Args:
            name: how the curve is called.
            optimizer: over the model's own parameters.
            steps: at most this many.
            end: the moment on the monotonic clock at which to stop.
            clip: largest gradient norm; sparse gradients are made dense for it.
            warm_up: steps over which the learning rates rise to those given.
            enough: whether the scores so far show that the run learns.
        """
        start = time.monotonic()
        scores: list[Score] = []
        tracks: tuple[list[float], list[float]] = ([], [])
        outcome: Outcome = "falling"
        rates = [group.get("lr") for group in optimizer.param_groups]
        with self._sandbox.probe():
            if not self._sandbox.training[""]:
                self._target.model.train()
            for index in range(steps):
                scores.append(self._pass())
                tracks[0].append(scores[-1].by_value(scores[0]))
                tracks[1].append(scores[-1].by_errors(self.unavoidable))
                if ended := self._ended(scores, tracks, end):
                    outcome = ended
                    break
                if enough(scores):
                    outcome = "learning"
                    break
                if clip is not None:
                    _densify(self._parameters)
                    torch.nn.utils.clip_grad_norm_(self._parameters, clip)
                if index < warm_up:
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = None if rate is None else rate * (index + 1) / warm_up
                _advance(optimizer)
        if outcome in ("stalled", "falling") and tracks[1][-1] >= _ALL_RIGHT:
            outcome = "memorised"
        progress = tuple(map(max, *tracks))
        return Curve(name, outcome, tuple(scores), progress, time.monotonic() - start)

    def run_own(self, steps: int, end: float, change: Setting | None = None) -> Curve:
        """The user's optimizer over the model's own tensors, with at most one setting changed.

        Raises:
            _RefusedError: its step raised.
        """
        original = unwrap(self._target.optimizer)
        double = twin(original, {id(p) for p in self._parameters})
        kept = self._own_groups()
        for group, (_, peak) in zip(double.param_groups, kept, strict=True):
            if group.get("lr") is not None:
                group["lr"] = peak / (_SMALLER if change == "lr" else 1)
            if change in ("maximize", "weight_decay") and change in group:
                group[change] = False if change == "maximize" else 0.0
        rates = sorted({peak for _, peak in kept})
        rated = any(group.get("lr") is not None for group, _ in kept)
        shown = f", lr {' to '.join(f'{rate:g}' for rate in sorted({rates[0], rates[-1]}))}" if rated else ""
        warms_up = any(peak > 2 * float(group.get("lr") or 0.0) for group, peak in kept)
        return self.run(
            f"{type(original).__name__}{shown}",
            double,
            steps,
            end,
            clip=1.0 if change == "clip" else None,
            warm_up=min(_WARM_UP, steps // 3) if warms_up else 0,
            enough=_learns,
        )

    def repair(self, own: Curve, steps: int, end: float) -> Repair | None:
        """Look for the one setting that keeps the user's optimizer at a constant prediction."""
        for setting in self._suspects(own, steps):
            curve = self.run_own(steps, end, setting)
            if curve.learns and not (setting == "clip" and curve.rises):
                return Repair(setting, curve)
        return None

    def _suspects(self, own: Curve, steps: int) -> Iterator[Setting]:
        if not own.stands:
            return
        groups = self._own_groups()
        if any(group.get("maximize") for group, _ in groups):
            yield "maximize"
        if any(rate * float(group.get("weight_decay", 0.0)) * steps > _STANDING for group, rate in groups):
            yield "weight_decay"
        if own.rises:
            yield "clip"
            yield "lr"

    def _own_groups(self) -> list[tuple[dict[str, Any], float]]:
        """The groups of the user's optimizer that hold the model's tensors, with their peak learning rates."""
        original = unwrap(self._target.optimizer)
        peaks = peak_rates(original, self._target.scheduler, self._target.training_steps)
        known = {id(p) for p in self._parameters}
        return [
            (group, peak)
            for group, peak in zip(original.param_groups, peaks, strict=True)
            if any(id(p) in known for p in group["params"])
        ]

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
            first = self._main is None
            if first:
                self._main = watch.main
                self.call = watch.main_call
                rows = watch.rows()
                blind = blind_errors(part, *rows) if rows is not None else 0
                self.unavoidable = max(self.unavoidable, blind * len(self._parts))
            if not outcome.loss.requires_grad:
                raise Broken("the loss lost its graph while the model was trained on a few samples")
            with watch:
                backward(loss := outcome.loss / len(self._parts))
            if first:
                self.lowers_likelihood = watch.lowers_likelihood(float(loss.detach().mean()), split(part)[1])
        return Score.total(scores)

    def _ended(
        self, scores: Sequence[Score], tracks: Sequence[Sequence[float]], end: float
    ) -> Outcome | None:
        if not math.isfinite(scores[-1].loss):
            return "diverged"
        if len(scores) >= 2 and all(self._knows(score, scores[0]) for score in scores[-2:]):
            return "memorised"
        if time.monotonic() > end:
            return "out of time"
        return "stalled" if all(map(_has_stalled, tracks)) else None

    def _knows(self, score: Score, first: Score) -> bool:
        gone = score.by_value(first)
        if gone >= _LOSS_GONE:
            return score.kind != "unknown" or score.value >= 0
        return score.by_errors(self.unavoidable) >= _ALL_RIGHT and not gone < 0.5


class _RefusedError(Exception):
    """The user's optimizer can't be stepped like this."""


def _advance(optimizer: Any) -> None:
    with own_steps():
        try:
            optimizer.step()
        except Exception as error:
            raise _RefusedError(f"`{type(optimizer).__name__}.step()` raised: {one_line(error)}") from error


def _densify(parameters: Sequence[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.layout is not torch.strided:
            parameter.grad = parameter.grad.to_dense()


def _has_stalled(track: Sequence[float]) -> bool:
    """Whether the last steps brought nothing, measured against the best stretch of as many steps before.

    A run that moves slowly but steadily, towards targets far away say, has not stalled. A track without values
    tells nothing against it.
    """
    if len(track) <= _PATIENCE:
        return False
    if not math.isfinite(track[-1]):
        return True
    stretch = _PATIENCE // 2
    recent = max(track) - max(track[:-stretch])
    before = max(track[end] - track[end - stretch] for end in range(stretch, len(track) - stretch))
    return recent < 0.01 and (recent < 0.25 * before or max(recent, before) < 1e-6)


def _learns(scores: Sequence[Score]) -> bool:
    """Whether the loss is lower by a share for ten steps on end, and not by luck in a wild run."""
    if len(scores) <= 10 or _has_risen(scores, _LUCKY):
        return False
    return all(score.gained(scores[0]) >= _LEARNING for score in scores[-10:])


def _has_risen(scores: Sequence[Score], share: float) -> bool:
    return max(-score.fallen(scores[0]) for score in scores) > share


def _held(target: Target, parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter] | None:
    """The parameters that the user's optimizer holds; ``None`` without an optimizer."""
    if target.optimizer is None:
        return None
    held = {id(p) for group in unwrap(target.optimizer).param_groups for p in group["params"]}
    return [p for p in parameters if id(p) in held]
