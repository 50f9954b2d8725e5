"""What the loss does over time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean, median
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import LoopRecord, LossLog
from debugkit.testing import blobs, mlp, watched

from ._blame import told

_BOTTOMLESS = 1e4
_WINDOW = 20


@check
def loss_trend(
    loop: LoopRecord,
    *,
    growth: Annotated[
        float, Field(gt=1, description="Loss, as a multiple of its start, above which it diverged.")
    ] = 10.0,
    flat: Annotated[
        float, Field(gt=0, lt=1, description="Distance from ln(classes), as a share, that is chance.")
    ] = 0.04,
    patience: Annotated[int, Field(ge=20, description="Losses before a flat curve is judged.")] = 100,
) -> Iterator[Finding]:
    """The loss is not finite, diverges, never changes, or stays at chance.

    ## Why is this bad?
    One NaN in the loss makes every weight NaN at the next step, and nothing after it can be saved. A loss that ends
    far above its start, that is the same number at every batch, or that stays at the entropy of a uniform guess,
    means that what follows is wasted.

    ## What to do
    For NaN: look at the module and step that are named; a division by zero, a logarithm of zero, an overflow in
    half precision or a too large learning rate are the usual causes. For a flat loss: check labels, learning rate
    and whether the loss depends on the inputs.

    ## Known limits
    Divergence is judged for positive losses of loops with one optimizer. Chance is known where the model gives one
    row of class scores per sample.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    if not any(log.values for log in loop.losses) and loop.broken is None:
        raise Unavailable("no backward pass of a single loss was seen")
    scaled = any(scaler.scale > 1 for scaler in loop.scalers)
    if any(window.still_scaled for log in loop.optimizers for window in log.windows):
        raise Unavailable("the steps along scaled gradients, which `loss-scaler` reports, come first")
    if (broken := loop.broken) is not None and broken.place in ("weights", "batch", "module", "between"):
        cause, hint = told(broken, loop.steps)
        yield fail(
            f"the loop ended itself after {loop.steps} steps, before a backward: {cause}",
            where=broken.module,
            hint=hint,
            step=loop.steps,
        )
    for log in loop.losses:
        if log.first_bad is not None:
            yield from _not_finite(log, log.first_bad, scaled)
            continue
        yield from _constant(log)
        if len(loop.optimizers) == 1 and len(loop.losses) == 1:
            yield from _diverged(log, growth)
            yield from _at_chance(log, flat, patience)
    for log in loop.losses:
        finite = [value for value in log.values if math.isfinite(value)]
        if len(finite) >= 2:
            first, last = median(finite[:5]), median(finite[-5:])
            yield note(
                f"{first:.4g} to {last:.4g} in {len(log.values)} losses", location=log.location, last=last
            )


def _not_finite(log: LossLog, index: int, scaled: bool) -> Iterator[Finding]:
    later = log.values[index:]
    bad = sum(not math.isfinite(value) for value in later)
    lasting = bad > 0.5 * len(later)
    if scaled and (not lasting or bad < 3):
        return
    value = "NaN" if math.isnan(log.values[index]) else "infinite"
    cause, hint = told(log.blame, log.steps[index])
    tell = fail if lasting or len(later) < 3 else warn
    yield tell(
        f"the loss is {value} at backward {index + 1} (after {log.steps[index]} steps): {cause}",
        where=log.blame.module if log.blame is not None else None,
        location=log.location,
        hint=hint,
        step=log.steps[index],
        bad=bad,
    )


def _constant(log: LossLog) -> Iterator[Finding]:
    first = log.values[:_WINDOW]
    if len(first) == _WINDOW and len(set(log.values)) == 1:
        yield warn(
            f"the loss was {first[0]:.6g} in each of {len(log.values)} backward passes: it depends on nothing that "
            "training changes",
            location=log.location,
            hint="check that the loss is computed from the model's outputs, and that the weights move",
            loss=first[0],
        )


def _diverged(log: LossLog, growth: float) -> Iterator[Finding]:
    values = log.values
    if len(values) >= _WINDOW and median(values[-10:]) < -_BOTTOMLESS * max(map(abs, values[:5])):
        yield warn(
            f"the loss went from {values[0]:.4g} to {values[-1]:.4g} in {len(values)} backward passes: it has no lower "
            "bound, and training runs down to it",
            location=log.location,
            hint="look at the sign of each term of the loss",
            first=values[0],
            last=values[-1],
        )
    if len(values) < _WINDOW or min(values) <= 0:
        return
    first, last = median(values[:5]), median(values[-10:])
    burst = last > 10 * growth * values[0]
    if burst or (last > growth * first and last > 2 * max(values[:5])):
        first = values[0] if burst else first
        yield warn(
            f"the loss went from {first:.4g} to {last:.4g} in {len(values)} backward passes: training diverges",
            location=log.location,
            hint="lower the learning rate, warm it up, or clip the gradients",
            first=first,
            last=last,
        )


def _at_chance(log: LossLog, flat: float, patience: int) -> Iterator[Finding]:
    if log.classes is None or len(log.values) < patience or len(set(log.values)) == 1:
        return
    chance = math.log(log.classes)
    first, last = fmean(log.values[: patience // 4]), fmean(log.values[-patience // 2 :])
    near = abs(first / chance - 1) < 5 * flat and abs(last / chance - 1) < flat
    if near and abs(last / first - 1) < 2 * flat:
        yield warn(
            f"the loss stays at chance: {last:.4g} after {len(log.values)} backward passes, where guessing among "
            f"{log.classes} classes gives {chance:.4g}",
            location=log.location,
            hint="check that labels belong to their inputs, and try a higher learning rate on 16 samples",
            loss=last,
            chance=chance,
        )


def _train(mistake: str | None = None) -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, maximize=mistake == "sign")
    for index, (x, y) in enumerate([*loader] * 30):
        optimizer.zero_grad()
        if mistake == "labels":
            y = torch.randint(2, y.shape)
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        if mistake == "log of zero" and index >= 5:
            loss = loss + torch.log(logits.mean() * 0)
        if mistake == "no bound":
            loss = loss - logits.square().mean().exp()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def good() -> LoopRecord:
    return watched(_train)


def bad_log_of_zero() -> LoopRecord:
    return watched(lambda: _train(mistake="log of zero"))


def bad_diverges() -> LoopRecord:
    return watched(lambda: _train(mistake="sign"))


def bad_without_a_bound() -> LoopRecord:
    return watched(lambda: _train(mistake="no bound"))


def bad_stays_at_chance() -> LoopRecord:
    return watched(lambda: _train(mistake="labels"))
