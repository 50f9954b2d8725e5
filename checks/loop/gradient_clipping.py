"""Clipping in the wrong place, or to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import ClipLog, LoopRecord
from debugkit.testing import blobs, mlp, watched

_CERTAIN = 2


@check
def gradient_clipping(
    loop: LoopRecord,
    *,
    hard: Annotated[
        float, Field(gt=0, lt=1, description="Limit over norm below which a step is clipped hard.")
    ] = 0.02,
    share: Annotated[float, Field(gt=0, lt=1, description="Share of steps that are clipped hard.")] = 0.9,
    calls: Annotated[int, Field(ge=3, description="Calls before that is judged.")] = 20,
) -> Iterator[Finding]:
    """Gradients are clipped after the step, before there are any, while scaled, or to almost nothing.

    ## Why is this bad?
    Clipped after `step`, before `backward`, or before `scaler.unscale_`, the limit does not protect the step: the
    first spike goes through, or the limit acts on gradients that are thousands of times too large and leaves
    nothing of them. A limit far below the usual norm turns every step into one of fixed length.

    ## What to do
    Clip between `backward` and `step`: with a gradient scaler, call `scaler.unscale_(optimizer)` first. Choose the
    limit near the norms of a healthy run.

    ## Known limits
    Only clipping by norm with torch's own functions is seen. A low limit on purpose (SGD with normalised
    gradients) warns.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping
    - https://github.com/Lightning-AI/pytorch-lightning/issues/9330
    """
    if not loop.clips:
        raise Unavailable("no gradients were clipped while the loop was watched")
    wiped = any(window.wiped for log in loop.optimizers for window in log.windows)
    for clip in loop.clips:
        yield from _order(clip, wiped)
        yield from _strength(clip, hard, share, calls)


def _order(clip: ClipLog, wiped: bool) -> Iterator[Finding]:
    if clip.after_step >= _CERTAIN and clip.after_step > 0.5 * clip.calls:
        yield fail(
            f"gradients are clipped after the step that used them, in {clip.after_step} of {clip.calls} calls: the "
            f"limit {clip.limit:g} protects nothing",
            location=clip.location,
            hint="clip between `loss.backward()` and `optimizer.step()`",
            calls=clip.after_step,
        )
    if not wiped and clip.before_backward >= _CERTAIN and clip.before_backward > 0.5 * clip.calls:
        yield fail(
            f"there were no gradients to clip in {clip.before_backward} of {clip.calls} calls: the limit "
            f"{clip.limit:g} protects nothing",
            location=clip.location,
            hint="clip between `loss.backward()` and `optimizer.step()`",
            calls=clip.before_backward,
        )
    if clip.scaled >= _CERTAIN and clip.scaled > 0.5 * clip.calls:
        yield fail(
            f"gradients are clipped while they are scaled, in {clip.scaled} of {clip.calls} calls: after unscaling, "
            f"the limit {clip.limit:g} is thousands of times smaller",
            location=clip.location,
            hint="call `scaler.unscale_(optimizer)` before clipping",
            calls=clip.scaled,
        )


def _strength(clip: ClipLog, hard: float, share: float, calls: int) -> Iterator[Finding]:
    if not clip.ratios or clip.scaled or clip.after_step:
        return
    ratios = sorted(clip.ratios)
    middle = ratios[len(ratios) // 2]
    clipped = sum(ratio < hard for ratio in ratios)
    if len(ratios) >= calls and clipped > share * len(ratios):
        yield warn(
            f"{clipped} of {len(ratios)} gradients were scaled to less than {hard:g} of their norm (median "
            f"{middle:.2g}): with the limit {clip.limit:g} only the direction is left",
            location=clip.location,
            hint=f"raise `max_norm` towards the usual norm, about {clip.limit / middle:.2g}",
            clipped=clipped,
            median=middle,
        )
    acted = sum(ratio < 1 for ratio in ratios) / len(ratios)
    yield note(
        f"{acted:.0%} of {clip.calls} gradients were over the limit {clip.limit:g}, median norm "
        f"{clip.limit / middle:.3g}",
        location=clip.location,
        share=acted,
    )


def _train(order: str, limit: float = 1.0) -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x, y in [*loader] * 6:
        optimizer.zero_grad()
        if order == "before backward":
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        if order == "right":
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        if order == "after step":
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)


def good() -> LoopRecord:
    return watched(lambda: _train("right"))


def bad_after_step() -> LoopRecord:
    return watched(lambda: _train("after step"))


def bad_before_backward() -> LoopRecord:
    return watched(lambda: _train("before backward"))


def bad_limit() -> LoopRecord:
    return watched(lambda: _train("right", limit=1e-5))
