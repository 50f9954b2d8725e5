"""A few samples that the model can't memorise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.control_runs import ControlRuns
from debugkit.probes.overfit import OverfitRuns
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.trials.curve import Curve

from ._unjudged import counted, from_to, refuse_to_judge, state

_REPAIRS = {
    "maximize": ("`maximize=False`", "leave `maximize=True` out"),
    "weight_decay": ("`weight_decay=0`", "lower `weight_decay`"),
    "lr": ("a hundredth of the rate", "lower the learning rate"),
}
_REBUILD = "build the optimizer from `model.parameters()` after the last change to the model"


@check
def overfit_samples(
    runs: OverfitRuns,
    step: TrainingStep,
    controls: ControlRuns | None,
    *,
    stuck: Annotated[
        float, Field(gt=0, lt=1, description="progress below which a stalled run counts as unable to learn")
    ] = 0.3,
    half_way: Annotated[
        float, Field(gt=0, lt=1, description="progress below which a stalled run is worth a warning")
    ] = 0.5,
    own_rate: Annotated[
        float,
        Field(gt=0, description="progress per 100 steps below which the user's optimizer does not learn"),
    ] = 0.005,
) -> Iterator[Finding]:
    """A few samples can't be memorised, though any working model with a working loss memorises 16.

    16 short samples that cover the labels are trained on with regularisation off. AdamW at sane learning
    rates tells whether model, loss and data work together; the user's own optimizer at its peak learning rate
    tells whether its settings do; noise in the place of inputs that are not memorised tells whether these are at
    fault. Progress is measured between the best constant prediction (0) and a perfect
    one (1), so that an entropy floor or an imbalanced label does not look like learning.

    ## Why is this bad?
    A model that can't memorise 16 samples will not learn a data set: its input does not reach its output, its
    gradient is cut or zero, its output can't reach the targets, or its loss points elsewhere.

    ## What to do
    Look at the other findings first. Then overfit one batch by hand and follow an input through the model:
    the prediction must depend on it. When only your own optimizer fails, look at the learning rate, at the
    parameters it holds, and at the schedule.

    ## Known limits
    Random labels are memorised just as well, so a pass says nothing about the labels. A run that is still
    falling when its steps or its time end is not judged, and neither is one that stalls on a loss without a known
    floor or on a discrete choice inside the model. The user's optimizer runs without gradient clipping.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    - https://arxiv.org/abs/2204.00694
    """
    if (good := runs.memorised) is not None:
        yield note(
            f"{counted(runs.samples, 'sample')} memorised in {counted(len(good.scores) - 1, 'step')} "
            f"({good.optimizer}, {from_to(good)})",
            steps=len(good.scores) - 1,
            loss_first=good.first.value,
            loss_last=good.last.value,
        )
        yield from _own(runs, good, own_rate)
        return
    best = runs.best
    if flipped := _flipped(runs, best):
        yield flipped
        return
    refuse_to_judge(runs, step)
    tried = ", ".join(run.optimizer.partition("lr ")[2] for run in runs.runs)
    message = (
        f"{counted(runs.samples, 'sample')} can't be memorised: AdamW stalls at {state(best)} (learning rates "
        f"{tried}), {_compared(best)}"
    )
    measured: dict[str, Any] = {
        "progress": best.best,
        "loss_first": best.first.value,
        "loss_last": best.last.value,
    }
    location = runs.call[1] if runs.call else None
    if best.best < stuck:
        yield fail(message, location=location, hint=_hint(best, controls), **measured)
    elif best.best < half_way:
        yield warn(message, location=location, hint=_hint(best, controls), **measured)
    else:
        yield note(message, location=location, **measured)


def _own(runs: OverfitRuns, good: Curve, own_rate: float) -> Iterator[Finding]:
    own, repair = runs.own, runs.repair
    if runs.covered is None:
        return
    held = f"it holds {runs.covered} of {counted(runs.tensors, 'trainable tensor')}"
    if runs.covered == 0:
        yield warn(
            f"your optimizer holds none of the model's {counted(runs.tensors, 'trainable tensor')}: its steps train "
            "nothing",
            where="optimizer",
            hint=_REBUILD,
        )
        return
    if own is None:
        yield note(f"your optimizer was not tried: {runs.refusal}")
        return
    name, steps = f"your {own.optimizer}", len(own.scores)
    reached = f"{name} goes {from_to(own)} in {counted(steps, 'step')}; {held}"
    if own.outcome == "memorised":
        yield note(f"{name} memorises them in {counted(steps - 1, 'step')}; {held}")
    elif own.outcome == "learning":
        yield note(reached)
    elif repair is not None and repair.setting == "clip":
        yield note(f"{reached}; with gradients clipped to a norm of 1 it learns")
    elif repair is not None:
        changed, hint = _REPAIRS[repair.setting]
        yield warn(
            f"{name} {_failed(own)} on {counted(runs.samples, 'sample')} ({from_to(own)} in {counted(steps, 'step')}); "
            f"with {changed} it learns ({from_to(repair.curve)} in "
            f"{counted(len(repair.curve.scores), 'step')})",
            where="optimizer",
            hint=hint,
            steps=steps,
        )
    elif own.outcome == "diverged":
        yield warn(
            f"{name} diverges on the same {counted(runs.samples, 'sample')} after {counted(steps, 'step')}, where "
            f"{good.optimizer} memorises them",
            where="optimizer",
            hint="lower the learning rate",
        )
    elif steps < 20:
        yield note(f"{reached}: too few to judge; raise `overfit-runs.own-seconds`")
    else:
        yield _judge_own(runs, good, own, own_rate) or note(reached)


def _failed(own: Curve) -> str:
    if own.outcome == "diverged":
        return "diverges"
    return (
        "raises the loss" if own.last.value > own.first.value else "ends no better than a constant prediction"
    )


def _judge_own(runs: OverfitRuns, good: Curve, own: Curve, own_rate: float) -> Finding | None:
    steps = len(own.scores)
    ending = max(1, steps // 10)
    reached = _mean(own.progress[-ending:]) - own.progress[0]
    level = _mean([score.value for score in own.scores[-ending:]])
    lowered = (own.first.value - level) / max(abs(own.first.value), 1e-12)
    gained = max(reached, lowered)
    middle = _mean([score.value for score in own.scores[steps // 3 : 2 * steps // 3]])
    risen = lowered < -0.2
    flat = (middle - level) < 0.01 * abs(own.first.value)
    if gained * 100 / steps >= own_rate and not (risen and flat):
        return None
    told = "raises the loss" if risen else "does not lower the loss"
    return warn(
        f"your {own.optimizer} {told} on {counted(runs.samples, 'sample')} in {counted(steps, 'step')} "
        f"({from_to(own)}), where {good.optimizer} memorises them in {len(good.scores) - 1}; it holds {runs.covered} "
        f"of {counted(runs.tensors, 'trainable tensor')}",
        where="optimizer",
        hint="lower the learning rate" if risen else f"check the learning rate and schedule, and {_REBUILD}",
        steps=steps,
        gained=gained,
    )


def _flipped(runs: OverfitRuns, run: Curve) -> Finding | None:
    """What is minimised is the negative of a loss."""
    first, last = run.first, run.last
    if runs.lowers_likelihood and last.loss < first.loss:
        return fail(
            f"the loss is the log-likelihood of the labels and training lowers it from {first.loss:.3g} to "
            f"{last.loss:.3g}: its minus is missing",
            location=runs.call[1] if runs.call else None,
            hint="minimise the negative log-likelihood, or use `cross_entropy`",
            loss_first=first.loss,
            loss_last=last.loss,
        )
    if last.kind == "unknown" or not (last.loss < first.loss and last.value > 1.5 * first.value > 0):
        return None
    name, location = runs.call or ("the loss", None)
    return fail(
        f"training raises `{name}` from {first.value:.3g} to {last.value:.3g} while the loss that is minimised falls "
        f"to {last.loss:.3g}: its sign is flipped",
        location=location,
        hint="minimise the loss itself, not its negative",
        loss_first=first.value,
        loss_last=last.value,
    )


def _compared(run: Curve) -> str:
    last = run.last
    if last.kind == "classes":
        return f"where one constant answer has {last.constant_errors} wrong"
    if last.kind == "values":
        return f"where predicting the mean gives {last.constant_value:.3g}"
    return f"from {run.first.value:.3g} at the start"


def _hint(run: Curve, controls: ControlRuns | None) -> str:
    last = run.last
    noise = controls.noise if controls is not None else None
    if noise is not None and noise.outcome == "memorised":
        return (
            f"the same model memorises noise in the place of the inputs in {counted(len(noise.scores) - 1, 'step')}: look "
            "at the inputs, at their scale and at what tells them apart"
        )
    constant = run.best < 0.05 and last.kind != "unknown" and not last.value > 1.05 * last.constant_value
    if constant:
        return "the prediction does not depend on the input: follow one sample through `forward` and the loss"
    return "check that the output can reach the targets (activation, scale) and that every layer is used"


def _mean(values: object) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def good() -> Target:
    model = mlp()
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=torch.optim.Adam(model.parameters()))


class _IgnoresInput(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x - x)
        return logits


def bad_input_does_not_reach_output() -> Target:
    return Target(_IgnoresInput(), blobs(), torch.nn.CrossEntropyLoss())


def bad_flipped_sign() -> Target:
    return Target(mlp(), blobs(), lambda logits, y: -torch.nn.functional.cross_entropy(logits, y))


def bad_learning_rate() -> Target:
    model = mlp()
    return Target(
        model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(model.parameters(), lr=1e-9)
    )
