"""Models that give every sample the same output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.dependence import Dependence
from debugkit.testing import blobs
from debugkit.weights.freshness import model_is_fresh


@check
def output_variety(
    target: Target,
    dependence: Dependence,
    *,
    min_variety: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="difference between samples, relative to the largest output, to warn below",
        ),
    ] = 1e-7,
) -> Iterator[Finding]:
    """Different samples get the same output.

    A few rows run in eval mode. Parameters that are zero throughout, such as a head that starts at zero on purpose, are
    nudged first, as the first optimizer step would.

    ## Why is this bad?
    A softmax over one class is 1 for everything; a normalisation over a single value is its bias; units that are all
    dead or saturated pass nothing on. The loss then has one value for all inputs, and where no gradient gets through
    either, training does nothing.

    ## What to do
    Look at the module that is named: what goes into it differs from row to row, and what comes out does not. Give a
    softmax at least two classes (or use a sigmoid), normalise over more than one value, and check the scale of weights
    and biases before activations that saturate.

    ## Known limits
    Outputs that fade with depth in a model that is not trained yet, but differ in double precision, are told in a note.
    Layers that keep running statistics use those of the rows where outputs look the same with the kept ones. Outputs
    that are not computed from the inputs at all are the business of `input-dependence`.

    ## References
    - https://stackoverflow.com/questions/33969059
    """
    if dependence.variety is None:
        raise Unavailable(
            "the rows of the batch are the same, or there is only one, or they could not be compared"
        )
    if dependence.variety == 0.0 and not dependence.reached:
        yield note("all outputs are the same, and not computed from the inputs (see `input-dependence`)")
    elif dependence.variety == 0.0:
        where = dependence.same_from
        after = f" from `{where}` on" if where else ""
        yield fail(
            f"{dependence.samples} different rows of `{dependence.main}` give exactly the same outputs{after}: the model "
            "can't tell them apart",
            where=where,
            hint="look for a softmax or a normalisation over a single value, or units that are all dead or saturated",
            samples=dependence.samples,
        )
    elif dependence.variety < min_variety and not model_is_fresh(target.model):
        yield warn(
            f"outputs of {dependence.samples} different rows of `{dependence.main}` differ by at most "
            f"{dependence.variety:.2g} of their size, which is about what rounding does",
            hint="look for activations that saturate or vanish from layer to layer",
            variety=dependence.variety,
        )
    else:
        yield note(
            f"outputs of {dependence.samples} rows differ by up to {dependence.variety:.2g} of their size",
            variety=dependence.variety,
        )


def _classifier(last: nn.Module) -> Target:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), last)
    return Target(model, blobs(), nn.CrossEntropyLoss())


def good() -> Target:
    return _classifier(nn.Linear(16, 2))


def good_head_that_starts_at_zero() -> Target:
    head = nn.Linear(16, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return _classifier(head)


def bad_norm_over_one_value() -> Target:
    return _classifier(nn.Sequential(nn.Linear(16, 1), nn.LayerNorm(1), nn.Linear(1, 2)))


def bad_dead_units() -> Target:
    body = nn.Linear(16, 16)
    nn.init.constant_(body.bias, -100.0)
    return _classifier(nn.Sequential(body, nn.ReLU(), nn.Linear(16, 2)))
