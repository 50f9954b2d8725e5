"""A few samples that the model can't memorise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.objective import Score
from debugkit.probes.overfit import Curve, OverfitRuns
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp


@check
def overfit_samples(
    runs: OverfitRuns,
    step: TrainingStep,
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
    tells whether its settings do. Progress is measured between the best constant prediction (0) and a perfect
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
    falling when its steps or its time end is not judged.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    - https://arxiv.org/abs/2204.00694
    """
    if (good := runs.memorised) is not None:
        yield note(
            f"{runs.samples} samples memorised in {len(good.scores) - 1} steps ({good.optimizer}, "
            f"{_from_to(good.first, good.last)})",
            steps=len(good.scores) - 1,
            loss_first=good.first.value,
            loss_last=good.last.value,
        )
        yield from _own(runs, good, own_rate)
        return
    best = runs.best
    if flipped := _flipped(step, best):
        yield flipped
        return
    judged = [run for run in runs.runs if run.outcome in ("stalled", "diverged")]
    certain = len(judged) >= 2 and all(run in judged or run.best < best.best + 0.02 for run in runs.runs)
    if not certain or (best.last.kind == "unknown" and best.best > 0.02):
        raise Unavailable(
            f"not judged: after {len(best.scores)} steps of {best.optimizer} the loss was still falling "
            f"({_from_to(best.first, best.last)}); raise `overfit-runs.max-steps` or `overfit-runs.max-seconds`"
        )
    if runs.trainable < runs.samples * 2:
        raise Unavailable(
            f"not judged: {runs.trainable} trainable values can't memorise {runs.samples} samples"
        )
    tried = ", ".join(f"{run.optimizer.partition('lr ')[2]}" for run in runs.runs)
    message = (
        f"{runs.samples} samples can't be memorised: AdamW stalls at {_state(best)} (learning rates {tried}), "
        f"{_compared(best)}"
    )
    measured: dict[str, Any] = {
        "progress": best.best,
        "loss_first": best.first.value,
        "loss_last": best.last.value,
    }
    location = next((call.location for call in step.loss_calls if call.connected), None)
    if best.best < stuck:
        yield fail(message, location=location, hint=_hint(best), **measured)
    elif best.best < half_way:
        yield warn(message, location=location, hint=_hint(best), **measured)
    else:
        yield note(message, location=location, **measured)


def _own(runs: OverfitRuns, good: Curve, own_rate: float) -> Iterator[Finding]:
    own = runs.own
    held = f"it holds {runs.covered} of {runs.tensors} trainable tensors"
    if own is None or own.outcome == "memorised":
        if own is not None:
            yield note(f"your {own.optimizer} memorises them in {len(own.scores) - 1} steps")
        return
    if own.outcome == "diverged":
        yield warn(
            f"your {own.optimizer} diverges on the same {runs.samples} samples after {len(own.scores)} steps, where "
            f"{good.optimizer} memorises them",
            where="optimizer",
            hint="lower the learning rate",
        )
        return
    steps = len(own.scores)
    if steps < 20:
        return
    reached = _mean(own.progress[-max(1, steps // 10) :]) - own.progress[0]
    level = _mean([score.value for score in own.scores[-max(1, steps // 10) :]])
    lowered = (own.first.value - level) / max(abs(own.first.value), 1e-12)
    gained = max(reached, lowered)
    middle = _mean([score.value for score in own.scores[steps // 3 : 2 * steps // 3]])
    risen = level > 1.2 * own.first.value
    flat = (middle - level) < 0.01 * abs(own.first.value)
    if gained * 100 / steps < own_rate or (risen and flat):
        told = "raises the loss" if risen else "does not lower the loss"
        yield warn(
            f"your {own.optimizer} {told} on {runs.samples} samples in {steps} steps ({_from_to(own.first, own.last)}), "
            f"where {good.optimizer} memorises them in {len(good.scores) - 1}; {held}",
            where="optimizer",
            hint="lower the learning rate"
            if risen
            else "check the learning rate and schedule, and build the optimizer from `model.parameters()` after the "
            "last change to the model",
            steps=steps,
            gained=gained,
        )
    else:
        yield note(f"your {own.optimizer} goes {_from_to(own.first, own.last)} in {steps} steps; {held}")


def _flipped(step: TrainingStep, run: Curve) -> Finding | None:
    """The whole loss falls while the loss call in it rises: a minus sign."""
    first, last = run.first, run.last
    if last.kind == "unknown" or not (last.loss < first.loss and last.value > 1.5 * first.value > 0):
        return None
    call = next((call for call in step.loss_calls if call.connected), None)
    return fail(
        f"training raises `{call.name if call else 'the loss'}` from {first.value:.3g} to {last.value:.3g} while the "
        f"loss that is minimised falls to {last.loss:.3g}: its sign is flipped",
        location=call.location if call else None,
        hint="minimise the loss itself, not its negative",
        loss_first=first.value,
        loss_last=last.value,
    )


def _state(run: Curve) -> str:
    last = run.last
    if last.kind == "classes":
        return f"{last.errors} wrong of {last.counted} and a loss of {last.value:.3g}"
    return f"a loss of {last.value:.3g}"


def _compared(run: Curve) -> str:
    last = run.last
    if last.kind == "classes":
        return f"where one constant answer has {last.constant_errors} wrong"
    if last.kind == "values":
        return f"where predicting the mean gives {last.constant_value:.3g}"
    return f"from {run.first.value:.3g} at the start"


def _hint(run: Curve) -> str:
    if run.best < 0.05 and run.last.kind != "unknown":
        return "the prediction does not depend on the input: follow one sample through `forward` and the loss"
    return "check that the output can reach the targets (activation, scale) and that every layer is used"


def _from_to(first: Score, last: Score) -> str:
    return f"loss {first.value:.3g} → {last.value:.3g}"


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
