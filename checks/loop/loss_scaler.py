"""Gradient scaling that is done by half."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note
from debugkit.probes.loop_record import LoopRecord
from debugkit.testing import blobs, mlp, watched

_CERTAIN = 2


@check
def loss_scaler(
    loop: LoopRecord,
    *,
    skips: Annotated[
        int, Field(ge=2, description="Steps of the scaler, all of them skipped, before that is a failure.")
    ] = 20,
) -> Iterator[Finding]:
    """A gradient scaler skips every step, or the optimizer steps along gradients that are still scaled.

    ## Why is this bad?
    A scaler skips a step whose gradients are not finite. A few at the beginning are normal; when all are skipped,
    the loss is as it was. `optimizer.step()` in place of `scaler.step(optimizer)` applies gradients that are
    65,536 times too large.

    ## What to do
    Per step: `scaler.scale(loss).backward()`, `scaler.unscale_(optimizer)` if the gradients are clipped,
    `scaler.step(optimizer)`, `scaler.update()`.

    ## Known limits
    Only `torch.amp.GradScaler` is seen.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html
    """
    if not loop.scalers:
        raise Unavailable("no gradient scaler was used while the loop was watched")
    for log in loop.optimizers:
        windows = [window for window in log.windows if window.still_scaled]
        if len(windows) >= _CERTAIN:
            yield fail(
                f"`{log.name}` stepped along gradients that are still scaled, in {len(windows)} of "
                f"{len(log.windows)} steps: they are {loop.scalers[0].scale:,.0f} times too large",
                location=windows[-1].location,
                hint="call `scaler.step(optimizer)` instead of `optimizer.step()`",
                steps=len(windows),
            )
    for scaler in loop.scalers:
        if scaler.refused is not None:
            yield fail(
                f"the gradient scaler refused its call after {scaler.taken} steps taken and {scaler.updates} updates: "
                f"{scaler.refused}",
                hint="per step: `unscale_` at most once, `scaler.step(optimizer)`, then `scaler.update()`",
                updates=scaler.updates,
            )
        if scaler.steps >= skips and not scaler.taken:
            yield fail(
                f"the gradient scaler skipped all {scaler.steps} steps: no gradient was finite, down to a scale of "
                f"{scaler.scale:g}",
                hint="find where the first value overflows; train in bfloat16 if the model was made for it",
                steps=scaler.steps,
            )
        yield note(
            f"{scaler.taken} of {scaler.steps} steps taken, scale {scaler.scale:g}", taken=scaler.taken
        )


def _train(mistake: str | None) -> None:
    model, loader = mlp(), blobs(samples=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6 if mistake == "scaled" else 0.05)
    scaler = torch.amp.GradScaler("cpu")
    for x, y in [*loader] * 3:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        if mistake == "overflow":
            loss = loss + torch.sqrt(model(x) * 0).mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if mistake == "scaled":
            optimizer.step()
        else:
            scaler.step(optimizer)
            if mistake != "never updated":
                scaler.update()


def good() -> LoopRecord:
    return watched(lambda: _train(None))


def bad_still_scaled() -> LoopRecord:
    return watched(lambda: _train("scaled"))


def bad_never_updated() -> LoopRecord:
    def train() -> None:
        with suppress(RuntimeError):
            _train("never updated")

    return watched(train)


def bad_all_skipped() -> LoopRecord:
    return watched(lambda: _train("overflow"))
