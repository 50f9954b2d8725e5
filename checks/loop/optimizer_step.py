"""Steps and backward passes that do not belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import LoopRecord, OptimizerLog
from debugkit.testing import blobs, mlp, watched

_CERTAIN = 2
_LIVE = 20


@check
def optimizer_step(
    loop: LoopRecord,
    *,
    least_steps: Annotated[
        int, Field(ge=3, description="Steps without any gradient before that is a failure.")
    ] = 3,
) -> Iterator[Finding]:
    """The optimizer never steps, steps twice on one gradient, or steps without any.

    ## Why is this bad?
    Without `step` the weights stay as they are while the loss looks alive: batches differ, and dropout draws anew.
    A second `step` on the same gradient doubles the learning rate. A step that finds no gradient changes nothing,
    or only what weight decay and momentum do. When the last batches of a pass do not fill an accumulation window,
    their gradients are added to the first step of the next pass.

    ## What to do
    Call `optimizer.step()` once after the backward pass, or passes, whose gradients it should use, and hand it the
    parameters that the loss reaches. With accumulation, step also after the last batch of a pass.

    ## Known limits
    Of a long run the first 20 steps and every 50th are looked at closely.

    ## References
    - https://github.com/huggingface/transformers/issues/33455
    """
    if not loop.optimizers:
        raise Unavailable("no optimizer was made or used while the loop was watched")
    for optimizer in loop.optimizers:
        yield from _never(optimizer, loop)
        yield from _again(optimizer)
        yield from _nothing(optimizer, least_steps)
        yield from _carried_over(optimizer)
    steps = " + ".join(f"{log.steps} steps of `{log.name}`" for log in loop.optimizers)
    yield note(f"{steps} in {loop.backwards} backward passes", steps=loop.steps, backwards=loop.backwards)


def _never(optimizer: OptimizerLog, loop: LoopRecord) -> Iterator[Finding]:
    if optimizer.steps or optimizer.by_hand or not optimizer.alone:
        return
    if any(scaler.steps and not scaler.taken for scaler in loop.scalers):
        return
    waiting = optimizer.open_discarded + optimizer.open_backwards
    if waiting >= (_CERTAIN if loop.finished else _LIVE):
        yield fail(
            f"`{optimizer.name}` never stepped, while {waiting} backward passes gave its parameters gradients: "
            "nothing was learnt",
            hint="call `optimizer.step()` after `loss.backward()`",
            backwards=waiting,
        )


def _again(optimizer: OptimizerLog) -> Iterator[Finding]:
    windows = [window for window in optimizer.windows if window.reused]
    if len(windows) >= _CERTAIN and not optimizer.has_closure:
        yield fail(
            f"`{optimizer.name}` stepped again on the same gradient, with no backward pass in between, in "
            f"{len(windows)} of {len(optimizer.windows)} steps: the same gradient counts twice",
            location=windows[-1].location,
            hint="call `optimizer.step()` once per gradient",
            steps=len(windows),
        )


def _nothing(optimizer: OptimizerLog, least: int) -> Iterator[Finding]:
    windows = [window for window in optimizer.windows if window.passes and not window.wiped]
    trainable = sum(layer.requires_grad for layer in optimizer.layers)
    if len(windows) < least or not trainable or any(window.gradients != "none" for window in windows):
        return
    if any(window.discarded for window in windows):
        return
    yield fail(
        f"`{optimizer.name}` found no gradient in any of {len(windows)} steps: no backward pass reaches the "
        f"{trainable} trainable tensors that it holds",
        where=optimizer.layers[0].name,
        location=windows[-1].location,
        hint="hand the optimizer the parameters of the model that is trained, after the model is complete",
        steps=len(windows),
    )


def _carried_over(optimizer: OptimizerLog) -> Iterator[Finding]:
    counts = Counter(window.backwards for window in optimizer.windows if not window.carried)
    if not counts:
        return
    usual = counts.most_common(1)[0][0]
    more = [window for window in optimizer.windows if window.carried and window.backwards > usual]
    if usual >= 2 and more:
        window = more[0]
        yield warn(
            f"step {window.step} of `{optimizer.name}` used the gradients of {window.backwards} backward passes, where "
            f"{usual} are usual: {window.carried} of them were left over from the pass over the data before",
            location=window.location,
            hint="step after the last batch of a pass too, or clear its gradients",
            backwards=window.backwards,
            usual=usual,
        )


def _train(mistake: str | None) -> None:
    model, loader = mlp(), blobs(samples=80)
    held = mlp(seed=1) if mistake == "other model" else model
    optimizer = torch.optim.Adam(held.parameters(), lr=1e-2)
    accumulation = 4 if mistake in ("tail", "accumulation") else 1
    for _ in range(4):
        for index, (x, y) in enumerate(loader):
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            last = index + 1 == len(loader) and mistake != "tail"
            if (index + 1) % accumulation and not last:
                continue
            if mistake != "never":
                optimizer.step()
            if mistake == "twice":
                optimizer.step()
            optimizer.zero_grad()


def good() -> LoopRecord:
    return watched(lambda: _train(None))


def good_accumulation() -> LoopRecord:
    return watched(lambda: _train("accumulation"))


def bad_never() -> LoopRecord:
    return watched(lambda: _train("never"))


def bad_twice() -> LoopRecord:
    return watched(lambda: _train("twice"))


def bad_other_model() -> LoopRecord:
    return watched(lambda: _train("other model"))


def bad_tail_carried_over() -> LoopRecord:
    return watched(lambda: _train("tail"))
