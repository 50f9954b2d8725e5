"""Parameters and buffers that hold NaN, infinity, or numbers too small to be normal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from debugkit import Finding, Target, Unavailable, absent, check, fail, note, warn
from debugkit.probes.weight_values import LATE, WHOLE, WeightValues
from debugkit.weights.odd_values import OddValues

if TYPE_CHECKING or not absent.models:
    import torch

    from debugkit.probes.training_step import TrainingStep
    from debugkit.testing import blobs, mlp
else:
    from debugkit.absent import Absent as TrainingStep


@check
def finite_weights(
    target: Target | None,
    values: WeightValues,
    step: TrainingStep | None,
    *,
    max_denormal_share: Annotated[
        float, Field(gt=0, le=1, description="share of a parameter's values that may be denormal")
    ] = 0.5,
) -> Iterator[Finding]:
    """A parameter or buffer holds NaN or infinity, or consists of denormal numbers.

    ## Why is this bad?
    One NaN in a weight turns every output that it touches into NaN, and the next optimizer step spreads it to
    the whole model. It comes from a checkpoint saved after a loss had exploded, from a value beyond the range of
    half precision, from a division by zero in an initialiser or in computed statistics, or from memory that was
    never written (`torch.empty`). Weights that decayed to denormal numbers carry nothing and slow a CPU down.

    ## What to do
    Go back to the last checkpoint without it and find the step at which it appeared
    (`torch.autograd.detect_anomaly()`); keep values within the range of the precision before casting.

    ## Known limits
    Minus infinity is a note where it is there on purpose: in masks (a buffer or frozen parameter with no other odd
    values and either two or more dimensions or two levels), and in a trainable parameter whose loss and gradient
    are finite while its other values learn (transitions that a CRF forbids). Buffers that are infinite or NaN all over mark "not set yet", as
    observers and metrics do; they are a note unless the loss is not finite, or they are statistics of a
    normalisation layer. Integer, quantised and packed weights are not read.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    - https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.detect_anomaly
    """
    if not values.tensors:
        why = ", ".join(f"{count} {reason}" for reason, count in values.unread.items())
        raise Unavailable(
            f"no tensor of the model can be read ({why})" if why else "the model has no tensors"
        )
    reasons = {odd.name: _meant(odd, target, step) for odd in values.odd if odd.unbounded}
    for odd in values.odd:
        if (reason := reasons.get(odd.name)) is not None:
            yield note(f"`{odd.name}` {list(odd.shape)} holds {_kinds(odd)}: {reason}", where=odd.name)
        elif odd.unbounded:
            yield _broken(odd)
    for odd in values.odd:
        share = odd.denormal / odd.values
        if odd.is_parameter and share > max_denormal_share:
            yield warn(
                f"{odd.denormal:,} of {odd.values:,} values of `{odd.name}` are denormal: they have decayed to nothing",
                where=odd.name,
                hint="look whether it still gets a gradient, and take weight decay off it",
                share=share,
            )
    if None not in reasons.values():
        late = values.unread.get(LATE, 0)
        unread = sum(values.unread.values()) - values.unread.get(WHOLE, 0) - late
        rest = f"; {unread} tensors can't be read" if unread else ""
        rest += f"; {late} were not reached in the time given" if late else ""
        but = " but those" if reasons else ""
        yield note(
            f"no NaN or infinity{but} in {values.tensors} tensors with {values.values:,} values{rest}",
            tensors=values.tensors,
            values=values.values,
        )


def _broken(odd: OddValues) -> Finding:
    place = f" (the first at {list(odd.first)})" if odd.first else ""
    kind = "every output that it touches is lost"
    if not odd.is_parameter:
        kind = "every output computed with it is lost"
    return fail(
        f"`{odd.name}` {list(odd.shape)} holds {_kinds(odd)}{place}: {kind}",
        where=odd.name,
        hint="go back to the last checkpoint without it, and find the step at which it appeared"
        if odd.is_parameter
        else "look at what computed it: a division by zero, a spread of one value, or an overflow",
        nan=odd.nan,
        infinite=odd.plus + odd.minus,
        values=odd.values,
    )


def _kinds(odd: OddValues) -> str:
    parts = [
        f"{count:,} {name}"
        for count, name in ((odd.nan, "NaN"), (odd.plus, "infinity"), (odd.minus, "minus infinity"))
        if count
    ]
    return f"{' and '.join(parts)} among {odd.values:,} values"


def _meant(odd: OddValues, target: Target | None, step: TrainingStep | None) -> str | None:
    """Why values that are not finite are there on purpose; ``None`` where they are not."""
    finite_loss = step is not None and math.isfinite(step.loss)
    only_minus = not odd.nan and not odd.plus
    if odd.is_parameter and odd.trainable:
        largest = step.gradients[odd.name].largest if step and odd.name in step.gradients else None
        some = only_minus and odd.minus < odd.values
        if some and finite_loss and largest is not None and 0 < largest < math.inf:
            return "the loss and its gradient are finite, so it is a choice that is ruled out"
        return None
    if not odd.is_parameter and target is not None and _is_statistic(target.model, odd.name):
        return None
    if only_minus and odd.minus < odd.values and (len(odd.shape) >= 2 or odd.levels <= 2):
        return "a mask"
    if odd.is_parameter:
        return None
    everywhere = odd.unbounded == odd.values
    if everywhere and not odd.nan:
        return "a bound that is not set yet"
    if everywhere and finite_loss:
        return "not set yet, and the loss is finite"
    return None


def _is_statistic(model: torch.nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    return isinstance(module, torch.nn.modules.batchnorm._NormBase) and attribute.startswith("running_")


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_causal_mask() -> Target:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.mask = torch.nn.Buffer(torch.full((8, 8), float("-inf")).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = x[:, :, None] * x[:, None, :] + self.mask
            mixed: torch.Tensor = self.body((scores.softmax(-1) @ x[:, :, None])[..., 0])
            return mixed

    return Target(Masked(), blobs(), torch.nn.CrossEntropyLoss())


def bad_nan_in_a_weight() -> Target:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.weight")[3, 4] = float("nan")
    return Target(model)


def bad_overflowed_statistics() -> Target:
    norm = torch.nn.BatchNorm1d(8)
    with torch.no_grad():
        norm.running_var[2] = torch.tensor(70000.0).half().float()  # type: ignore[index]
    return Target(torch.nn.Sequential(norm, mlp()))


def bad_denormal_weights() -> Target:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-39)
    return Target(model)
