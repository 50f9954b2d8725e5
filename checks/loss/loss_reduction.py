"""A loss that is no scalar, or that adds up over the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.loss_growth import LossGrowth, Total
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.source import is_library_class

_ABOUT = 0.1


@check
def loss_reduction(
    target: Target,
    step: TrainingStep,
    response: LossResponse | None,
    growth: LossGrowth | None,
    *,
    tolerance: Annotated[
        float, Field(gt=0, lt=0.1, description="how far a loss may be from exactly twice, or half, the other")
    ] = 1e-3,
) -> Iterator[Finding]:
    """A loss that is no scalar, or that adds up over the batch.

    A few samples are run once and then each of them twice, without dropout: the mean over the batch stays as it
    is, a sum doubles, and a mean that is divided by the batch size again halves.

    ## Why is this bad?
    `backward()` refuses a loss that is no scalar. A sum over the batch trains, but its gradient grows with the
    batch size: the learning rate, gradient clipping and the weight of other terms mean something else for every
    batch size, for the smaller last batch, and on several GPUs. A loss that shrinks with the batch size has the
    same fault the other way round.

    ## What to do
    Average over the samples: `reduction="mean"`, or divide a sum by the number of samples that count. A sum over
    the values of one sample (pixels, latent dimensions) is fine as long as the samples are averaged.

    ## Known limits
    A sum divided by a fixed number, such as the configured batch size, is a note, and so is the evidence lower
    bound of a variational autoencoder, which by convention is summed. Losses that compare samples with each other
    grow in other ways, which are a note.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    - Goyal et al. 2017, https://arxiv.org/abs/1706.02677
    """
    if torch.Size(step.loss_shape).numel() != 1:
        yield fail(
            f"the loss is no scalar but has shape {list(step.loss_shape)}, so `loss.backward()` raises",
            location=next((call.location for call in step.loss_calls if call.reduction == "none"), None),
            hint='average it: `reduction="mean"`, or `loss.mean()`',
        )
        return
    if growth is None:
        raise Unavailable(
            "the loss is a scalar; how it grows with the batch needs a batch of two samples or more that can be cut, "
            "and a step that runs on batches of other sizes"
        )
    if response is not None and any(crossing.blind for crossing in response.crossings):
        raise Unavailable("the loss compares every sample with every other one; see `loss-shape`")
    ratio = growth.ratio
    if not torch.tensor(ratio).isfinite():
        raise Unavailable(
            f"the loss of {growth.rows} samples is {growth.once:.3g}, which says nothing about its growth"
        )
    exact = tolerance if target.autocast_dtype is None else max(tolerance, 0.01)
    growing = [total for total in growth.totals if total.grows]
    summed = [total for total in growing if total.weight * growth.batch_size > 1.05]
    if abs(ratio - 0.5) <= 0.5 * exact and growth.rows > 1:
        yield _halves(growth)
    elif not _adds_up(growth, summed, exact):
        yield _as_it_is(growth, exact)
    elif growing and not summed:
        yield note(
            f"the loss adds up over the batch and is divided by a fixed number (1 / {1 / growing[0].weight:.4g}), "
            "so a smaller last batch weighs less",
            location=growing[0].location,
            ratio=ratio,
        )
    elif step.own_loss and is_library_class(type(target.model)):
        yield note(
            f"`{type(target.model).__name__}` itself adds its loss up over the batch (ratio {ratio:.3g}): its gradient grows "
            "with the batch size",
            hint="look for an option of the configuration, such as `ctc_loss_reduction`",
            ratio=ratio,
        )
    elif _is_bound(response):
        yield note(
            f"the loss adds up over the batch (ratio {ratio:.3g}), as the evidence lower bound often does: its gradient "
            "grows with the batch size",
            ratio=ratio,
        )
    else:
        yield _adds(target, growth, summed)


def _adds_up(growth: LossGrowth, summed: list[Total], exact: float) -> bool:
    """Whether the loss doubles: exactly, or but for its noise, as the sums that make it up show."""
    off = min(abs(growth.ratio - 2) / 2, abs(growth.ratio - 4) / 4)
    if off <= exact and (growth.rows > 2 or growth.totals):
        return True
    return growth.random and sum(total.share for total in summed) > 1 - _ABOUT


def _adds(target: Target, growth: LossGrowth, summed: list[Total]) -> Finding:
    by, ratio = growth.batch_size, growth.ratio
    first = next(iter(summed), None)
    told = ""
    if first is not None:
        told = f' by `{first.name}(reduction="sum")`' if first.is_loss else f" by `{first.name}`"
    how = "twice" if growth.random or abs(ratio) < 3 else f"{ratio:.3g} times"
    noise = ", but for its noise" if growth.random else ""
    return warn(
        f"{growth.rows} samples given twice have {how} the loss ({growth.once:.3g} → {growth.twice:.3g}{noise}): it is "
        f"summed over the batch{told}, so the gradient of your {by} samples is {by} times that of their mean"
        f"{_rate(target, by)}",
        location=first.location if first else None,
        hint='use `reduction="mean"`, or divide by the number of samples',
        ratio=ratio,
        batch_size=by,
    )


def _rate(target: Target, by: int) -> str:
    """What the sum does to the learning rate of an optimizer whose step grows with the gradient."""
    if not isinstance(target.optimizer, torch.optim.SGD):
        return ""
    rate: Any = target.optimizer.param_groups[0].get("lr")
    return f" (`lr={float(rate):g}` acts like {float(rate) * by:g})"


def _halves(growth: LossGrowth) -> Finding:
    return warn(
        f"{growth.rows} samples given twice have half the loss ({growth.once:.3g} → {growth.twice:.3g}): the mean is "
        f"divided by the batch size once more, so your {growth.batch_size} samples train with 1 / {growth.batch_size} of "
        "the learning rate",
        hint="divide by the number of samples once: leave the loss as its mean",
        ratio=growth.ratio,
        batch_size=growth.batch_size,
    )


def _as_it_is(growth: LossGrowth, exact: float) -> Finding:
    numbers = f"{growth.once:.3g} and {growth.twice:.3g}"
    if abs(growth.ratio - 1) <= max(exact, 0.02):
        told = f"the loss is a mean over the batch: {growth.rows} samples once and twice give {numbers}"
    else:
        told = (
            f"the loss of {growth.rows} samples once and twice is {numbers}: neither a mean nor a sum, as where samples "
            "are compared with each other or noise is drawn"
        )
    return note(told, ratio=growth.ratio)


def _is_bound(response: LossResponse | None) -> bool:
    """Whether a model that draws noise reconstructs its own input."""
    if response is None or not response.sampled:
        return False
    compared = [term for term in response.terms if term.sources and term.pull != "none"]
    return bool(compared) and all(term.fed for term in compared)


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_sum_over_the_outputs_only() -> Target:
    def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (
            F.binary_cross_entropy_with_logits(outputs, F.one_hot(y, 2).float(), reduction="none")
            .sum(1)
            .mean()
        )

    return Target(mlp(), blobs(), loss)


def bad_sum() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss(reduction="sum"))


def bad_no_reduction() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss(reduction="none"))


def bad_divided_twice() -> Target:
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, y) / len(y)

    return Target(mlp(), blobs(), loss)
