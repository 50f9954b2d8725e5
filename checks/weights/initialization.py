"""Weights that start constant, duplicated, or on the wrong scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.initial_scales import USUAL_GAIN, InitialScales, OffScale
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.weights.twins import Twins

_SHOWN = 3
_AVERAGE = 1e-3


@check
def initialization(
    step: TrainingStep,
    scales: InitialScales,
    *,
    min_stuck: Annotated[
        int,
        Field(ge=2, description="identical units of a layer, with identical gradients, that are reported"),
    ] = 2,
) -> Iterator[Finding]:
    """Units of a layer start identical and stay so, or weights start far too large or too small.

    The units of every layer are compared with each other, in values and in the gradients of the traced step. Scales
    are compared with the fan-in, and a scale that is off counts only where the activations show it.

    ## Why is this bad?
    Units with the same weights and the same gradients make the same step, for ever: a layer of 512 of them has the
    capacity of one. Weights that are ten times too large multiply the signal by ten in every layer, until
    activations saturate and the loss starts far above chance; weights that are far too small leave later layers
    nothing to learn from.

    ## What to do
    Draw weights at random, with a standard deviation of about 1 / sqrt(fan-in) (2 / fan-in for the variance in front
    of a ReLU); `nn.init.kaiming_normal_` and `nn.init.xavier_uniform_` do. Constants are for biases and for the scale
    of a norm.

    ## Known limits
    Only weights that mix data in a function of torch are compared; recurrent layers are not. The scale is judged in
    a model that is fresh throughout, and not where a norm behind the layer takes it off again. The last layer's
    scale is for `initial-loss`, and weights of zeros that stay so are for `missing-gradients`. What the library that
    a model comes from draws itself is not questioned.

    ## References
    - https://arxiv.org/abs/1502.01852
    - https://proceedings.mlr.press/v9/glorot10a.html
    """
    findings = [*_twins(step, min_stuck), *_large(scales), *_small(scales)]
    yield from findings
    if not findings:
        gains = scales.gains.values()
        span = f", gains from {min(gains):.2g} to {max(gains):.2g}" if gains else ""
        yield note(
            f"no stuck units in {len(step.layers.layers)} layers{span}", layers=len(step.layers.layers)
        )


def _twins(step: TrainingStep, min_stuck: int) -> Iterator[Finding]:
    stuck = {name: twins for name, twins in step.twins.items() if twins.stuck >= min_stuck}
    if len(stuck) > _SHOWN:
        yield note(f"{len(stuck)} layers have stuck units; the first {_SHOWN} are shown", layers=len(stuck))
    for name, twins in list(stuck.items())[:_SHOWN]:
        yield fail(
            f"{twins.stuck} of the {twins.units} units of `{name}` are identical to another, in weights and in "
            f"gradients{_value(twins)}: no step will ever tell them apart",
            where=name,
            location=step.layers.layers[name].location,
            hint="draw the weights at random, such as with `nn.init.kaiming_normal_`",
            units=twins.units,
            stuck=twins.stuck,
        )
    for name, twins in step.twins.items():
        value = twins.constant
        fan_in = step.layers.layers[name].fan_in
        if name in stuck or not value or abs(abs(value) * fan_in - 1) < _AVERAGE:
            continue
        yield warn(
            f"every weight of `{name}` is {value:.3g}: its {twins.units} units start as copies of one, and what is "
            "behind it sees a single number",
            where=name,
            hint="draw the weights at random, such as with `nn.init.kaiming_normal_`",
            units=twins.units,
        )


def _value(twins: Twins) -> str:
    return f" (every weight is {twins.constant:.3g})" if twins.constant is not None else ""


def _large(scales: InitialScales) -> Iterator[Finding]:
    large = [one for one in scales.off if one.kind == "large"]
    if not large:
        return
    worst = max(large, key=lambda one: one.gain)
    arrives = (
        f"`{worst.reached}` gets values of size {worst.reached_rms:.3g}"
        if worst.reached
        else f"its outputs of size {worst.reached_rms:.3g} saturate what follows"
    )
    yield warn(
        f"{_count(large)} too large: the weights of `{worst.name}` have a root mean square of {worst.rms:.3g}, which "
        f"over {worst.fan_in} inputs makes them {worst.gain:.3g} times as large, where {USUAL_GAIN:.2g} to 1.4 is "
        f"usual; {arrives}",
        where=worst.name,
        hint=f"draw them with a standard deviation of about {worst.fan_in**-0.5:.2g}, 1 / sqrt(fan-in)",
        gain=worst.gain,
        layers=len(large),
    )


def _small(scales: InitialScales) -> Iterator[Finding]:
    small = [one for one in scales.off if one.kind == "small"]
    if not small:
        return
    worst: OffScale = min(small, key=lambda one: one.gain)
    yield warn(
        f"{_count(small)} too small: the weights of `{worst.name}` have a root mean square of {worst.rms:.3g} over "
        f"{worst.fan_in} inputs, and `{worst.reached}` gets values of size {worst.reached_rms:.2g}",
        where=worst.name,
        hint=f"draw them with a standard deviation of about {worst.fan_in**-0.5:.2g}, 1 / sqrt(fan-in)",
        gain=worst.gain,
        layers=len(small),
    )


def _count(off: list[OffScale]) -> str:
    return f"{len(off)} layer{'s start' if len(off) > 1 else ' starts'}"


def _deep() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(8, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 2),
    )


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_zero_initialised_head() -> Target:
    model = mlp()
    torch.nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def bad_constant_weights() -> Target:
    model = _deep()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.05)
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def bad_weights_of_unit_variance() -> Target:
    model = _deep()
    for layer in (model[0], model[2], model[4]):
        torch.nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())
