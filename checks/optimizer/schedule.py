"""A learning-rate schedule that does not fit the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal
from debugkit.testing import blobs, mlp

from ._reading import Reading, readings

_ADVICE = "build the schedule for the optimizer steps of this run, and step it once per optimizer step"


@check
def schedule(
    rehearsal: ScheduleRehearsal,
    *,
    fail_end: Annotated[
        float,
        Field(
            gt=0, lt=1, description="share of training before which a rate of 0 until the end is a failure"
        ),
    ] = 0.1,
    warn_end: Annotated[
        float,
        Field(
            gt=0, le=1, description="share of training before which a rate of 0 until the end is a warning"
        ),
    ] = 0.8,
    reached: Annotated[
        float, Field(gt=0, le=1, description="share of its peak that a warm-up has to reach in training")
    ] = 0.9,
    max_swings: Annotated[
        int,
        Field(
            ge=1, description="smooth ways from the peak to nothing and back that no cycle is meant to have"
        ),
    ] = 5,
) -> Iterator[Finding]:
    """The learning rate is 0, negative or far from its peak for much of the planned run.

    A copy of the scheduler is stepped without the model. Where the loader has a length, the schedule is also read as
    one that is stepped once per pass over the data, and what fits either way is not a mistake.

    ## Why is this bad?
    A schedule is built from a number of steps, and nothing checks that the run has as many. One that ends early
    leaves the rest of the run at a rate of 0; a warm-up longer than the run never reaches the rate that was chosen; a
    rate below 0 climbs the loss.

    ## What to do
    Count in optimizer steps: batches per epoch over accumulation steps, times epochs. Step the scheduler as often as
    it expects, per step or per epoch.

    ## Known limits
    Without `training_steps` only a rate that is 0 throughout is judged. A scheduler that needs a metric can't be
    rehearsed. How often the training loop steps it can only be seen while it runs.

    ## References
    - https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
    - https://huggingface.co/docs/transformers/main_classes/optimizer_schedules
    """
    if not rehearsal.scheduled:
        raise Unavailable("the target has no scheduler; pass Target(scheduler=...)")
    curve = rehearsal.curve
    if not curve.steps:
        yield note(f"the schedule can't be rehearsed: {curve.refusal}")
        return
    if not any(rehearsal.base):
        yield note("the learning rates that it scales are 0; see `learning-rate`")
        return
    judged = [
        (reading, _judge(rehearsal, reading, fail_end, warn_end, reached, max_swings))
        for reading in readings(rehearsal)
    ]
    sound = next((reading for reading, finding in judged if finding is None), None)
    if sound is None:
        yield judged[0][1] or note("")
    else:
        yield _measured(rehearsal, sound)


def _judge(
    rehearsal: ScheduleRehearsal,
    reading: Reading,
    fail_end: float,
    warn_end: float,
    reached: float,
    max_swings: int,
) -> Finding | None:
    peak, length = reading.peak, reading.length
    total = f"{length:,} {reading.unit}s" if rehearsal.planned is not None else f"the first {length:,} steps"
    if not any(reading.highest) and not any(reading.lowest):
        return fail(
            f"the schedule never leaves 0: the learning rate is 0 in all of {total}",
            where="scheduler",
            hint="give it a factor above 0; an integer division or a step count of 0 gives 0 throughout",
            steps=length,
        )
    if rehearsal.planned is None:
        return None
    if (first := next((i for i, rate in enumerate(reading.lowest) if rate < 0), None)) is not None:
        return fail(
            f"the learning rate is negative from {reading.unit} {first:,} of {length:,} on ({reading.lowest[first]:.2g}): "
            "the optimizer climbs the loss",
            where="scheduler",
            hint="clamp the factor at 0, and make the schedule as long as the run",
            step=first,
        )
    if reading.raised:
        return fail(
            f"the scheduler raises after {len(reading.highest) - 1:,} of {total}: {rehearsal.curve.refusal}",
            where="scheduler",
            hint=_ADVICE,
            step=len(reading.highest) - 1,
        )
    end = reading.end
    if end is not None and end < warn_end * length:
        level = fail if end < fail_end * length and not reading.tail else warn
        return level(
            f"the learning rate is {'0' if not reading.tail else f'below a millionth of its peak {peak:.2g}'} from "
            f"{reading.unit} {end:,} of {length:,} on: the last {1 - end / length:.0%} of the run train nothing",
            where="scheduler",
            hint=_ADVICE,
            end=end,
            steps=length,
        )
    if (swings := reading.swings) >= max_swings:
        return warn(
            f"the learning rate falls to next to nothing and comes back {swings} times in {total}: the schedule is over "
            "long before the run",
            where="scheduler",
            hint=_ADVICE,
            swings=swings,
        )
    beyond = reading.later_peak
    if beyond is not None and peak < reached * beyond:
        return warn(
            f"the warm-up is longer than the run: in {total} the learning rate gets to {peak:.2g}, and its peak of "
            f"{beyond:.2g} would take {reading.later_place:,}",
            where="scheduler",
            hint="shorten the warm-up to a few percent of the run",
            peak=peak,
            planned_peak=beyond,
        )
    return None


def _measured(rehearsal: ScheduleRehearsal, reading: Reading) -> Finding:
    top = reading.highest.index(reading.peak)
    told = f"the learning rate peaks at {reading.peak:.3g} ({reading.unit} {top:,})"
    if rehearsal.planned is None:
        return note(
            f"{told} in the first {reading.length:,} steps; pass Target(training_steps=...) to judge its end"
        )
    read = ", read as one step of the schedule per epoch" if reading.unit == "epoch" else ""
    return note(
        f"{told} and ends at {reading.highest[-1]:.3g} after {reading.length:,} {reading.unit}s{read}",
        peak=reading.peak,
        last=reading.highest[-1],
    )


def good() -> Target:
    return _warmed_up(10, 100)


def good_stepped_per_epoch() -> Target:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    return Target(
        model,
        blobs(),
        torch.nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=scheduler,
        training_steps=40,
    )


def bad_ends_early() -> Target:
    return _warmed_up(1, 20, training_steps=1000)


def bad_warm_up_longer_than_the_run() -> Target:
    return _warmed_up(500, 5000)


def _warmed_up(warm_up: int, total: int, training_steps: int = 100) -> Target:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / warm_up, max(0.0, (total - step) / (total - warm_up)))
    )
    return Target(
        model,
        blobs(),
        torch.nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=scheduler,
        training_steps=training_steps,
    )
