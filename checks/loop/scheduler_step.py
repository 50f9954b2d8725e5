"""Learning-rate schedules that run at the wrong pace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, note, warn
from debugkit.probes.loop_record import LoopRecord, OptimizerLog, SchedulerLog
from debugkit.testing import blobs, mlp, watched

_FEW_STEPS = 20


@check
def scheduler_step(
    loop: LoopRecord,
    *,
    overrun: Annotated[
        float, Field(gt=1, description="Scheduler steps, as a multiple of the schedule's length.")
    ] = 1.25,
    collapsed: Annotated[
        float, Field(gt=0, lt=1, description="Learning rate, as a share of its peak, that teaches nothing.")
    ] = 1e-3,
    share: Annotated[
        float, Field(gt=0, lt=1, description="Share of the steps that ran at such a learning rate.")
    ] = 0.4,
) -> Iterator[Finding]:
    """The learning-rate scheduler is stepped at the wrong pace, too early, or never.

    The pace is judged against what the schedule says of its own length, and by the learning rate that the
    optimizer had at each step.

    ## Why is this bad?
    A schedule written in steps but stepped once per epoch never leaves its warm-up. One written in epochs but
    stepped per batch is at its end after a fraction of the first epoch: the rest of the run trains at a learning
    rate of nearly zero, or a cosine climbs again. Stepped before the optimizer's first step, the first value of
    the schedule is skipped.

    ## What to do
    Step the scheduler where its length counts: after each `optimizer.step()` if `T_max`, `total_steps` or
    `num_training_steps` are in steps, after each epoch if they are in epochs.

    ## Known limits
    Length is known for cosine, one-cycle and schedules that end at zero; of milestones only that they read as
    epochs. Cosine schedules that are meant to be periodic are taken for overrun.

    ## References
    - https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
    """
    if not loop.schedulers:
        raise Unavailable("no learning-rate scheduler was made while the loop was watched")
    by_name = {optimizer.name: optimizer for optimizer in loop.optimizers if optimizer.steps}
    another = [*_of_another(loop)]
    yield from another
    known = [schedule for schedule in loop.schedulers if schedule.optimizer in by_name]
    if not known and not another:
        raise Unavailable("no optimizer with a learning-rate scheduler stepped while the loop was watched")
    for schedule in known:
        optimizer = by_name[schedule.optimizer or ""]
        findings = [
            *_never(schedule, loop),
            *_too_early(schedule),
            *_too_slow(schedule, loop),
            *_overrun(schedule, overrun),
            *_milestones(schedule),
        ]
        if not findings:
            findings = [*_collapsed(schedule, optimizer, collapsed, share)]
        yield from findings
        length = "" if schedule.horizon is None else f" of {schedule.horizon}"
        yield note(
            f"`{schedule.name}` was stepped {schedule.steps} times{length} in {schedule.optimizer_steps} optimizer "
            "steps",
            steps=schedule.steps,
        )


def _never(schedule: SchedulerLog, loop: LoopRecord) -> Iterator[Finding]:
    long = schedule.passes >= 2 or schedule.optimizer_steps >= 5 * _FEW_STEPS
    long |= schedule.horizon is not None and schedule.optimizer_steps >= max(
        _FEW_STEPS, 0.5 * schedule.horizon
    )
    if loop.finished and not schedule.steps and not schedule.resumed and long:
        yield warn(
            f"`{schedule.name}` was never stepped in {schedule.optimizer_steps} optimizer steps: the learning rate "
            "stays at the first value of its schedule",
            hint="call `scheduler.step()` after `optimizer.step()`",
            optimizer_steps=schedule.optimizer_steps,
        )


def _too_early(schedule: SchedulerLog) -> Iterator[Finding]:
    if schedule.before_first == 1 and not schedule.resumed and schedule.optimizer_steps:
        yield warn(
            f"`{schedule.name}` was stepped before the first `optimizer.step()`: the first learning rate of its "
            "schedule is skipped, and it stays one step ahead",
            hint="call `scheduler.step()` after `optimizer.step()`",
        )


def _too_slow(schedule: SchedulerLog, loop: LoopRecord) -> Iterator[Finding]:
    if schedule.horizon is None or schedule.resumed or not schedule.steps:
        return
    rarely = schedule.optimizer_steps >= 4 * schedule.steps
    per_pass = schedule.steps <= schedule.passes + 1 or schedule.optimizer_steps <= 1.7 * schedule.horizon
    whole = loop.finished and schedule.optimizer_steps >= 0.6 * schedule.horizon
    if rarely and per_pass and schedule.steps <= 0.5 * schedule.horizon and whole:
        yield warn(
            f"`{schedule.name}` was stepped {schedule.steps} times, as if once per pass over the data, while its schedule "
            f"is {schedule.horizon} steps long and the optimizer took {schedule.optimizer_steps}: training ends "
            "where the schedule has hardly begun",
            hint="call `scheduler.step()` after each `optimizer.step()`, or give its length in epochs",
            steps=schedule.steps,
            horizon=schedule.horizon,
        )


def _of_another(loop: LoopRecord) -> Iterator[Finding]:
    """Schedules of an optimizer that never steps, while another one trains its parameters."""
    stepping = {frozenset(layer.name for layer in log.layers): log for log in loop.optimizers if log.steps}
    idle = {log.name: log for log in loop.optimizers if not log.steps and not log.alone}
    for schedule in loop.schedulers:
        log = idle.get(schedule.optimizer or "")
        other = stepping.get(frozenset(layer.name for layer in log.layers)) if log is not None else None
        if log is not None and other is not None and schedule.steps >= 2 and other.steps >= _FEW_STEPS:
            yield warn(
                f"`{schedule.name}` was stepped {schedule.steps} times for `{log.name}`, which never steps: its "
                f"parameters are trained by `{other.name}`, whose learning rate stays as it is",
                hint="make the scheduler with the optimizer that steps",
                steps=schedule.steps,
            )


def _milestones(schedule: SchedulerLog) -> Iterator[Finding]:
    """Milestones that read as epochs and are all behind after a part of the first one."""
    if not schedule.milestones or schedule.resumed or schedule.passes < 2:
        return
    last, per_pass = max(schedule.milestones), schedule.steps / schedule.passes
    if last <= schedule.passes and last < per_pass and schedule.steps >= 0.8 * schedule.optimizer_steps:
        listed = ", ".join(map(str, schedule.milestones))
        yield warn(
            f"`{schedule.name}` is stepped {per_pass:.0f} times per pass over the data, and its milestones are {listed}: "
            f"the last is behind after {last} batches of the first of {schedule.passes} passes",
            hint="step it once per epoch if its milestones are epochs, or give them in steps",
            steps=schedule.steps,
            last=last,
        )


def _overrun(schedule: SchedulerLog, factor: float) -> Iterator[Finding]:
    if schedule.horizon is None or schedule.resumed:
        return
    if schedule.steps > factor * schedule.horizon + 1:
        yield warn(
            f"`{schedule.name}` was stepped {schedule.steps} times, its schedule is {schedule.horizon} long: what "
            "comes after its end is no schedule",
            hint="step it once per epoch if its length is in epochs, or give its length in steps",
            steps=schedule.steps,
            horizon=schedule.horizon,
        )


def _collapsed(
    schedule: SchedulerLog, optimizer: OptimizerLog, level: float, share: float
) -> Iterator[Finding]:
    rates = [(step, max(values, default=0.0)) for step, values in optimizer.rates]
    if optimizer.steps < _FEW_STEPS or not rates:
        return
    peak_step, peak = max(rates, key=lambda rate: rate[1])
    ends = [step for step, _ in rates[1:]] + [optimizer.steps + 1]
    low = sum(
        end - step
        for (step, rate), end in zip(rates, ends, strict=True)
        if step > peak_step and rate < level * peak
    )
    if peak > 0 and low > share * optimizer.steps:
        yield warn(
            f"`{schedule.name}` took the learning rate to less than {level:g} of its peak of {peak:.3g} for {low} of "
            f"{optimizer.steps} steps: they hardly change the model",
            hint="step the scheduler once per epoch if its lengths are in epochs",
            steps=low,
            peak=peak,
            last=rates[-1][1],
        )


def _train(mistake: str | None) -> None:
    model, loader = mlp(), blobs(samples=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    epochs = 6
    length = epochs if mistake == "per batch" else epochs * len(loader)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if mistake == "milestones":
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    else:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
    if mistake == "another":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if mistake not in ("never", "per epoch"):
                schedule.step()
        if mistake == "per epoch":
            schedule.step()


def good() -> LoopRecord:
    return watched(lambda: _train(None))


def bad_never() -> LoopRecord:
    return watched(lambda: _train("never"))


def bad_per_batch() -> LoopRecord:
    return watched(lambda: _train("per batch"))


def bad_of_another_optimizer() -> LoopRecord:
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return watched(lambda: _train("another"))


def bad_milestones_per_batch() -> LoopRecord:
    return watched(lambda: _train("milestones"))


def bad_per_epoch() -> LoopRecord:
    return watched(lambda: _train("per epoch"))
