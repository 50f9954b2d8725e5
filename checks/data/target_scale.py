"""Regression targets that the output layer can't reach, or that are far from where it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.testing import mlp

from ._regression import Regression, regressions

_SMALLEST_SPREAD = 3.0


@check
def target_scale(
    samples: Samples,
    batches: Batches,
    target: Target,
    sandbox: Sandbox,
    step: TrainingStep | None,
    *,
    max_spread: Annotated[
        float, Field(gt=0, description="how wide the middle 90 % of the targets may be spread")
    ] = 100,
    max_offset: Annotated[
        float,
        Field(gt=1, description="how many of their standard deviations the targets' mean may be away from 0"),
    ] = 10,
    max_lost: Annotated[
        float,
        Field(
            gt=0, lt=1, description="share of the targets' variance that may be out of the predictions' reach"
        ),
    ] = 0.01,
) -> Iterator[Finding]:
    """Regression targets are out of the output layer's reach, or far from where it starts.

    The operation that gives the predictions is read from the graph of a traced step; the targets are those that
    the loss was given, so a step that standardises them itself is fine.

    ## Why is this bad?
    A ReLU never gives a negative number and a sigmoid never more than 1: for targets beyond, the loss has a floor
    that no training gets under, and the predictions sit at the end of the range without a gradient. An output layer
    starts near 0 with a spread below 1; targets around 200,000 make the first gradients enormous, and most of the
    training is spent on moving one bias.

    ## What to do
    Leave the last layer of a regression linear, or use the activation whose range fits. Standardise targets by the
    training split's mean and standard deviation (and undo it to predict), or predict `log1p` of amounts.

    ## Known limits
    A bound is seen where the last operations before the loss have one (an activation, a clamp), not where a scale
    follows it. A loss that is written out inside `training_step` is judged where it compares the model's output with
    the labels as they are.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/ (init well)
    - https://scikit-learn.org/stable/modules/generated/sklearn.compose.TransformedTargetRegressor.html
    """
    found = list(regressions(target, samples, batches, sandbox, step))
    if not found:
        raise Unavailable(_nothing(samples, step))
    reported, measured = set(), []
    for one in found:
        findings = list(_out_of_reach(one, max_lost)) or list(_far(one, max_spread, max_offset))
        if findings and one.place not in reported:
            reported.add(one.place)
            yield from findings
        measured.append(one)
    if not reported:
        yield note("; ".join(_measured(one) for one in measured[:3]))


def _nothing(samples: Samples, step: TrainingStep | None) -> str:
    if step is None and samples.labels.kind == "values":
        return "the step was not traced, so what the loss makes of the targets is not known"
    return "no loss on numbers was seen (the targets are classes or tokens, or the loss is written out in the step)"


def _out_of_reach(one: Regression, max_lost: float) -> Iterator[Finding]:
    if not one.reach.bounded or one.lost <= max_lost:
        return
    share = "some" if one.beyond is None else f"{one.beyond:.0%}"
    interval = _interval(one.reach.low, one.reach.high)
    bound = f"the loss takes {interval}" if one.own_range else f"`{one.reach.op}` gives {interval}"
    yield fail(
        f"{share} of the targets of {one.name} are out of reach: they go from {one.minimum:.4g} to "
        f"{one.maximum:.4g}, and {bound}",
        where=one.where,
        location=one.location,
        hint=_fit(one),
        minimum=one.minimum,
        maximum=one.maximum,
        **({} if one.beyond is None else {"outside": one.beyond}),
    )


def _fit(one: Regression) -> str:
    if one.own_range and one.reach.high < float("inf"):
        return "scale the targets to [0, 1] (images: divide by 255, without `Normalize`), or use `mse_loss`"
    if one.own_range:
        return "give it counts as they are, not standardised, or use `mse_loss`"
    low, high = one.reach.low, one.reach.high
    if low > float("-inf") and high < float("inf"):
        return f"remove `{one.reach.op}` from the output, or scale the targets to {_interval(low, high)}"
    return f"remove `{one.reach.op}` from the output: a regression's last layer is linear"


def _far(one: Regression, max_spread: float, max_offset: float) -> Iterator[Finding]:
    wide = one.width > max_spread
    off = abs(one.mean) > max_offset * max(one.std, _SMALLEST_SPREAD)
    if not (wide or off) or one.prepared or one.own_range or not one.is_label or one.samples < 2:
        return
    start = f"while the predictions start at {one.predicted_mean:.3g} ± {one.predicted_std:.2g}"
    what = (
        f"are spread over {one.width:,.4g} (the middle 90 %, around {one.mean:,.4g})"
        if wide
        else f"lie around {one.mean:,.5g} with a standard deviation of {one.std:.3g}"
    )
    yield warn(
        f"the targets of {one.name} {what}, {start}: the first gradients are as large as that distance",
        where=one.where,
        location=one.location,
        hint="standardise the targets by the training split's mean and standard deviation, or initialise the last "
        "bias with their mean",
        mean=one.mean,
        std=one.std,
        spread=one.width,
    )


def _measured(one: Regression) -> str:
    reach = f", which {one.reach.op} can reach" if one.reach.bounded else ""
    return (
        f"the targets of {one.name} go from {one.minimum:.3g} to {one.maximum:.3g}, mean {one.mean:.3g}, "
        f"std {one.std:.3g}{reach}; predictions start at {one.predicted_mean:.2g} ± {one.predicted_std:.2g}"
    )


def _interval(low: float, high: float) -> str:
    ends = f"at least {low:g}" if high == float("inf") else f"at most {high:g}"
    return f"[{low:g}, {high:g}]" if low > float("-inf") and high < float("inf") else ends


def _program(
    scale: float = 1.0,
    shift: float = 0.0,
    activation: torch.nn.Module | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.mse_loss,
) -> Target:
    """A regression on 8 features with targets around ``shift``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 8, generator=generator)
    y = torch.tanh(x[:, :1]) + 0.5 * torch.tanh(x[:, 1:2])
    y = scale * (y - y.mean()) / y.std() + shift
    model = torch.nn.Sequential(mlp(classes=1), *([activation] if activation else []))
    return Target(model, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True), loss)


def good() -> Target:
    return _program()


def good_within_a_sigmoid() -> Target:
    return _program(scale=0.1, shift=0.5, activation=torch.nn.Sigmoid())


def good_standardised_in_the_loss() -> Target:
    def loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(prediction, (y - 180_000) / 60_000)

    return _program(60_000, 180_000, loss=loss)


def bad_negative_targets_behind_relu() -> Target:
    return _program(activation=torch.nn.ReLU())


def bad_ratings_behind_sigmoid() -> Target:
    return _program(scale=1.0, shift=3.0, activation=torch.nn.Sigmoid())


def bad_prices() -> Target:
    return _program(60_000, 180_000)


def bad_years() -> Target:
    return _program(8, 2005, loss=lambda prediction, y: (prediction - y).abs().mean())
