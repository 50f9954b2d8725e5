"""Gradients that outlive their step, or do not live to see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import LoopRecord, OptimizerLog
from debugkit.testing import blobs, mlp, watched

_CERTAIN = 2


@check
def zero_grad(
    loop: LoopRecord,
    *,
    discarded: Annotated[
        float, Field(gt=0, le=1, description="Share of backward passes whose gradients nothing used.")
    ] = 0.3,
) -> Iterator[Finding]:
    """Gradients are not cleared between steps, or are cleared before the step uses them.

    Looked at is whether a gradient was empty or zero at some time between two steps of its optimizer, and what the
    optimizer found; not who called `zero_grad`.

    ## Why is this bad?
    `backward` adds to what is there. Without `zero_grad` each step goes along the sum of all gradients since the
    beginning: the loss falls at first, then the run overshoots and oscillates. Cleared between `backward` and
    `step`, the gradients are gone and nothing is learnt. Cleared at each batch while the step comes every k
    batches, k-1 of k batches are computed for nothing.

    ## What to do
    Call `optimizer.zero_grad()` once per optimizer step, just after `optimizer.step()` or before the first
    `backward` of the next.

    ## Known limits
    A gradient that is kept on purpose (a running mean in `.grad`) looks the same. Backward passes made for the
    gradient of an input (adversarial training) may be thrown away.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation
    """
    looked = 0
    for optimizer in loop.optimizers:
        looked += len(optimizer.windows)
        yield from _stale(optimizer)
        yield from _wiped(optimizer)
        if not any(log.open_discarded and not log.steps for log in loop.optimizers):
            yield from _discarded(optimizer, discarded)
    if not looked:
        raise Unavailable("no optimizer stepped while the loop was watched")
    yield note(f"{looked} steps looked at in {len(loop.optimizers)} optimizers", steps=looked)


def _stale(optimizer: OptimizerLog) -> Iterator[Finding]:
    windows = [window for window in optimizer.windows if window.stale]
    if len(windows) < _CERTAIN:
        return
    last = windows[-1]
    names, share = last.stale, len(last.stale) / max(1, last.parameters)
    part = "all parameters" if share == 1 else f"{len(names)} of {last.parameters} parameters"
    yield fail(
        f"`{optimizer.name}` steps along old gradients: those of {part} were not cleared since the step before, in "
        f"{len(windows)} of {len(optimizer.windows)} steps, so each step repeats all earlier ones",
        where=names[0],
        location=last.location,
        hint="call `optimizer.zero_grad()` once per step, before the first `backward` of the next",
        steps=len(windows),
        parameters=len(names),
    )


def _wiped(optimizer: OptimizerLog) -> Iterator[Finding]:
    windows = [window for window in optimizer.windows if window.wiped]
    if len(windows) >= _CERTAIN:
        yield fail(
            f"the gradients of `{optimizer.name}` are cleared between `backward` and `step`, in {len(windows)} of "
            f"{len(optimizer.windows)} steps: nothing is learnt from these batches",
            location=windows[-1].location,
            hint="call `zero_grad()` after `step()`, or before `backward()`",
            steps=len(windows),
        )


def _discarded(optimizer: OptimizerLog, most: float) -> Iterator[Finding]:
    windows = [window for window in optimizer.windows if not window.wiped]
    thrown = sum(window.discarded for window in windows)
    made = thrown + sum(window.backwards for window in windows)
    if thrown >= 2 * _CERTAIN and thrown > most * made and optimizer.alone and not optimizer.by_hand:
        yield warn(
            f"{thrown} of {made} backward passes of `{optimizer.name}` were cleared before any step used their "
            "gradients: these batches are computed for nothing",
            location=windows[-1].location,
            hint="call `zero_grad()` only where `step()` is called",
            discarded=thrown,
            backwards=made,
        )


def _train(clear: str) -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for index, (x, y) in enumerate([*loader, *loader, *loader]):
        if clear == "before":
            optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        if clear == "between":
            optimizer.zero_grad()
        if clear != "each batch" or index % 3 == 2:
            optimizer.step()
        if clear in ("after", "each batch"):
            optimizer.zero_grad()


def good() -> LoopRecord:
    return watched(lambda: _train("after"))


def good_zeros() -> LoopRecord:
    return watched(lambda: _train("before"))


def bad_never_cleared() -> LoopRecord:
    return watched(lambda: _train("never"))


def bad_cleared_before_step() -> LoopRecord:
    return watched(lambda: _train("between"))


def bad_cleared_each_batch() -> LoopRecord:
    return watched(lambda: _train("each batch"))
