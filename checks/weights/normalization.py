"""Norms that normalise nothing or too much, and dropout in the wrong place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.layers import Layers, Norm
from debugkit.weights.library_defaults import is_own_default

_USUAL_EPS = 1e-3
_FEWEST_KEPT = 2
_MOST_SHOWN = 3
_SEQUENCE_CONVOLUTION = ("conv1d", "conv_transpose1d")


@check
def normalization(
    target: Target,
    step: TrainingStep,
    *,
    max_dropout: Annotated[
        float, Field(gt=0, le=1, description="share that a dropout may drop; published models go up to 0.65")
    ] = 0.7,
    max_eps: Annotated[
        float, Field(gt=0, description="`eps` over the measured variance, where `eps` is over 0.001")
    ] = 10.0,
) -> Iterator[Finding]:
    """A norm has too few values to normalise, an `eps` that swamps them, or the wrong dimension; dropout drops too much.

    Every norm of torch that the traced step calls is looked at: how many values share a mean and a variance, and how
    large that variance is.

    ## Why is this bad?
    A mean over one value is that value: the norm gives its bias, whatever comes in. Over two values it keeps only
    which is larger. With an `eps` far above the variance a norm does not normalise, and what it gives stays small.
    `LayerNorm(length)` behind a `Conv1d` normalises over time and ties the model to one length. Dropout that drops
    nearly all, or that acts on the outputs themselves, hides from the loss what the model predicts.

    ## What to do
    Use more samples per device or `GroupNorm` instead of batch statistics; fewer groups; the `eps` of the paper.
    Transpose to `[batch, length, channels]` around a `LayerNorm` over channels. Keep dropout between layers.

    ## Known limits
    Norms that are written out by hand are not seen. Frozen norms that move are for `eval-mode`. A bias before a norm
    and dropout before a BatchNorm are notes: many healthy models have them.

    ## References
    - https://arxiv.org/abs/1803.08494
    - https://arxiv.org/abs/1801.05134
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html
    """
    layers = step.layers
    if not layers.norms and not layers.dropouts:
        raise Unavailable("the step calls no norm and no dropout of torch")
    findings = [
        *_few_values(layers),
        *_epsilons(layers, max_eps),
        *_dimensions(layers),
        *_dropouts(target, layers, max_dropout),
    ]
    yield from findings
    if not findings:
        yield _summary(layers)
    yield from _habits(layers)


def _few_values(layers: Layers) -> Iterator[Finding]:
    one = [norm for norm in layers.norms if norm.own_statistics and norm.over == 1 and norm.op != "rms_norm"]
    for norm in one[:_MOST_SHOWN]:
        yield fail(
            f"{_name(norm)} normalises each value by itself (input {list(norm.shape)}): it gives its bias whatever "
            "comes in, and no gradient passes",
            where=norm.module,
            location=norm.location,
            hint="let it normalise over more values: fewer groups, another dimension, or no norm here",
            values=1,
        )
    two = [
        norm for norm in layers.norms if norm.op == "batch_norm" and norm.own_statistics and norm.over == 2
    ]
    for norm in two[:_MOST_SHOWN]:
        yield warn(
            f"{_name(norm)} has {norm.over} values per channel (input {list(norm.shape)}): it keeps only which of them "
            "is larger",
            where=norm.module,
            location=norm.location,
            hint="use a larger batch, or `GroupNorm` instead",
            values=norm.over,
        )


def _epsilons(layers: Layers, limit: float) -> Iterator[Finding]:
    for norm in layers.norms:
        if norm.eps < 0 or (norm.eps == 0 and norm.variance == 0):
            yield fail(
                f"{_name(norm)} adds an `eps` of {norm.eps:g} to a variance of {norm.variance:.2g}: values that are "
                "all alike become NaN",
                where=norm.module,
                location=norm.location,
                hint="set `eps` to 1e-5",
            )
        elif norm.eps > _USUAL_EPS and norm.variance < norm.eps / limit and norm.over > 1:
            yield warn(
                f"{_name(norm)} adds an `eps` of {norm.eps:g} to a variance of {norm.variance:.2g}: its outputs are "
                f"{math.sqrt(norm.variance / (norm.variance + norm.eps)):.1g} in size, where 1 is meant",
                where=norm.module,
                location=norm.location,
                hint="set `eps` to 1e-5",
                eps=norm.eps,
                variance=norm.variance,
            )


def _dimensions(layers: Layers) -> Iterator[Finding]:
    for norm in layers.norms:
        layer = layers.layers.get(norm.layer or "")
        if (
            norm.op == "layer_norm"
            and layer is not None
            and layer.op in _SEQUENCE_CONVOLUTION
            and len(norm.shape) == 3
            and norm.layer_axis == 1
            and norm.normalised == (2,)
            and norm.over > 1
        ):
            yield warn(
                f"{_name(norm)} normalises the {norm.over} positions of a sequence, not the {norm.shape[1]} channels "
                f"that `{layer.module}` gives (input {list(norm.shape)})",
                where=norm.module,
                location=norm.location,
                hint="transpose to `[batch, length, channels]` around it, or use `GroupNorm(1, channels)`",
            )


def _dropouts(target: Target, layers: Layers, limit: float) -> Iterator[Finding]:
    seen = set()
    for dropout in layers.dropouts:
        key = (dropout.rate, dropout.module, dropout.location)
        where, place = dropout.module or None, dropout.location
        if key in seen:
            continue
        seen.add(key)
        if dropout.on_outputs:
            yield warn(
                f"the loss gets what a dropout of {dropout.rate:g} leaves: {dropout.rate:.0%} of the outputs are "
                "replaced by 0",
                where=where,
                location=place,
                hint="leave out the dropout behind the last layer",
                rate=dropout.rate,
            )
        elif dropout.rate >= 1:
            yield fail(
                "a dropout of 1 drops everything: nothing passes in training",
                where=where,
                location=place,
                hint="set `p` to the share that is dropped, such as 0.1",
                rate=dropout.rate,
            )
        elif dropout.rate > limit and is_own_default(target.model, dropout.module, dropout.rate):
            yield note(f"a dropout of {dropout.rate:g} is the default of its architecture", where=where)
        elif dropout.rate > limit:
            yield warn(
                f"a dropout of {dropout.rate:g} keeps {1 - dropout.rate:.0%} of the values",
                where=where,
                location=place,
                hint="set `p` to the share that is dropped, such as 0.1; 0.5 is already much",
                rate=dropout.rate,
            )


def _summary(layers: Layers) -> Finding:
    own = [norm.over for norm in layers.norms if norm.own_statistics]
    rates = [dropout.rate for dropout in layers.dropouts]
    text = f"{len(layers.norms)} norm{'s' if len(layers.norms) != 1 else ''}"
    text += f" over {min(own):,} values or more" if own else ""
    text += f", dropout of at most {max(rates):g}" if rates else ""
    return note(text, norms=len(layers.norms))


def _habits(layers: Layers) -> Iterator[Finding]:
    biases = [norm.adds_bias for norm in layers.norms if norm.adds_bias]
    if biases:
        yield note(
            f"{len(biases)} biases before a norm (such as `{biases[0]}`) are taken off again; `bias=False` saves them"
        )
    dropped = [
        norm for norm in layers.norms if norm.op == "batch_norm" and norm.dropout and norm.own_statistics
    ]
    if dropped:
        yield note(
            f"{_name(dropped[0])} comes right behind a dropout of {dropped[0].dropout:g}: the variance that it learns in "
            "training is not that of evaluation",
            where=dropped[0].module,
        )


def _name(norm: Norm) -> str:
    return f"`{norm.module}` (`{norm.op}`)" if norm.module else f"`{norm.op}`"


def _with(*layers: torch.nn.Module) -> Target:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), *layers, torch.nn.ReLU(), torch.nn.Linear(16, 2))
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def good() -> Target:
    return _with(torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.1))


def good_layer_norm() -> Target:
    return _with(torch.nn.LayerNorm(16))


def bad_one_value_per_group() -> Target:
    return _with(torch.nn.GroupNorm(16, 16))


def bad_eps_of_a_hundred() -> Target:
    return _with(torch.nn.LayerNorm(16, eps=100.0))


def bad_dropout_on_the_logits() -> Target:
    model = mlp().append(torch.nn.Dropout(0.2))
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())
