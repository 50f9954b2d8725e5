"""Learning rates and other settings with which an optimizer does not train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.optimizer_step import OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal, groups_of, rate_of
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._rates import out_of_range

_NONNEGATIVE = frozenset(
    {"cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy"}
    | {"binary_cross_entropy_with_logits"}
)


@check
def learning_rate(
    target: Target,
    rehearsal: ScheduleRehearsal,
    traits: OptimizerTraits | None,
    step: TrainingStep | None,
    moves: OptimizerStep | None,
    *,
    highest: Annotated[
        float,
        Field(gt=0, description="size of a step, per weight, above which a normalised optimizer is suspect"),
    ] = 0.05,
    lowest: Annotated[
        float,
        Field(gt=0, description="size of a step, per weight, below which a normalised optimizer is suspect"),
    ] = 1e-8,
    max_eps: Annotated[
        float, Field(gt=0, description="`eps` from which on it is compared with the gradients")
    ] = 1e-2,
) -> Iterator[Finding]:
    """The learning rate is 0, negative or far off, or another setting keeps the optimizer from training.

    The rate is the highest that the schedule plans. What counts as far off depends on what a step does: an optimizer
    that normalises the gradient (Adam, Lion) moves every weight by about the rate, one that does not (SGD) by the rate
    times the gradient. Which of the two it is, is tried out on a small matrix.

    ## Why is this bad?
    At a rate of 0 nothing trains and nothing crashes. A rate ten times too high destroys what was learned before or
    jumps about, and one a thousand times too low looks like a model that can't learn. `maximize=True` climbs the
    loss. An `eps` as large as the gradients turns Adam into a slow SGD, and one that is 0 in half precision divides
    by zero.

    ## What to do
    Start from the usual rates: AdamW 1e-5 to 1e-4 for fine-tuning, 1e-4 to 1e-3 from scratch, 1e-4 to 5e-3 for LoRA;
    SGD with momentum 1e-2 to 1e-1. Leave betas and eps at their defaults.

    ## Known limits
    A rate outside the range is reported only where a real step is large, or small, against the weights as well. An
    optimizer that adapts its own rate is not judged. A loop that sets `lr` itself should set it before the checks.

    ## References
    - https://arxiv.org/abs/1412.6980
    - https://github.com/pytorch/pytorch/issues/147437
    - https://docs.pytorch.org/docs/stable/optim.html
    """
    groups = groups_of(target)
    findings = [
        *_zero_or_negative(groups, rehearsal),
        *_maximised(groups, step),
        *_betas(groups),
        *_eps(groups, target, moves, max_eps),
    ]
    if not any(finding.level == "fail" for finding in findings) and traits is not None:
        findings += _far_off(rehearsal, traits, moves, highest, lowest)
    yield from findings
    if not any(finding.level in ("warn", "fail") for finding in findings):
        yield _measured(groups, rehearsal, traits)


def _zero_or_negative(groups: list[dict[str, Any]], rehearsal: ScheduleRehearsal) -> Iterator[Finding]:
    rated = [
        (group, base)
        for group, base in zip(groups, rehearsal.base, strict=True)
        if group.get("lr") is not None
    ]
    if negative := [rate_of(group) for group, _ in rated if rate_of(group) < 0]:
        yield fail(
            f"the learning rate is {negative[0]:.3g}, below 0: the optimizer climbs the loss",
            where="optimizer",
            hint="set `lr` to a positive rate",
            rate=negative[0],
        )
    elif rated and len(rated) == len(groups) and not any(base for _, base in rated):
        what = "that the scheduler scales is 0" if rehearsal.scheduled else "is 0"
        yield fail(
            f"the learning rate {what} in all {len(groups)} parameter groups: nothing trains"
            if len(groups) > 1
            else f"the learning rate {what}: nothing trains",
            where="optimizer",
            hint="set `lr` above 0",
            rate=0.0,
        )
    elif rated and not rehearsal.scheduled and not any(rate_of(group) for group, _ in rated):
        yield note(f"the learning rate starts at 0 and is scheduled up to {max(rehearsal.base):.3g}")


def _maximised(groups: list[dict[str, Any]], step: TrainingStep | None) -> Iterator[Finding]:
    if not any(group.get("maximize") for group in groups) or step is None or not step.loss > 0:
        return
    call = next(
        (c for c in step.loss_calls if c.connected and c.name.rpartition(".")[2] in _NONNEGATIVE), None
    )
    if call is not None:
        yield warn(
            f"the optimizer has `maximize=True` and the loss is an ordinary `{call.name}` of {step.loss:.3g}: training "
            "raises it",
            where="optimizer",
            location=call.location,
            hint="leave `maximize=True` out",
            loss=step.loss,
        )


def _betas(groups: list[dict[str, Any]]) -> Iterator[Finding]:
    for group in groups:
        first, second = _pair(group.get("betas"))
        if second < first:
            yield warn(
                f"`betas` are ({first:g}, {second:g}): the squared gradients are forgotten faster than the gradients, so "
                "steps can grow without bound",
                where="optimizer",
                hint="the second beta is the larger one: `betas=(0.9, 0.999)`",
                betas=[first, second],
            )
            return
        momentum = group.get("momentum")
        if isinstance(momentum, (int, float)) and momentum >= 1:
            yield fail(
                f"`momentum` is {momentum:g}: gradients are never forgotten, and the steps grow until training diverges",
                where="optimizer",
                hint="use a momentum below 1, such as 0.9",
                momentum=float(momentum),
            )
            return


def _pair(betas: Any) -> tuple[float, float]:
    """Two betas as numbers; ``(0, 0)`` for anything else."""
    if (
        isinstance(betas, (tuple, list))
        and len(betas) == 2
        and all(isinstance(b, (int, float)) for b in betas)
    ):
        return float(betas[0]), float(betas[1])
    return 0.0, 0.0


def _eps(
    groups: list[dict[str, Any]], target: Target, moves: OptimizerStep | None, max_eps: float
) -> Iterator[Finding]:
    for index, group in enumerate(groups):
        eps = group.get("eps")
        if not isinstance(eps, (int, float)) or isinstance(eps, bool):
            continue
        found = [m for m in moves.moves.values() if m.group == index and m.alive] if moves is not None else []
        broken = (
            [name for name, m in moves.moves.items() if m.group == index and not m.finite] if moves else []
        )
        half = [p for p in group["params"] if p.dtype is torch.float16]
        if half and float(torch.tensor(eps, dtype=torch.float16)) == 0:
            told = (
                f"`eps` of {eps:g} is 0 in float16, so a weight whose squared gradient is 0 there becomes NaN"
            )
            seen = f" (`{broken[0]}` after one step)" if broken else ""
            level = fail if broken else warn
            yield level(
                told + seen,
                where=broken[0] if broken else "optimizer",
                hint="keep the parameters in float32 under autocast, or use `eps=1e-4`",
                eps=float(eps),
            )
            return
        small = [m for m in found if m.gradient is not None and m.gradient < eps / 10]
        if eps >= max_eps and found and len(small) > 0.9 * len(found):
            middle = sorted(m.gradient or 0.0 for m in found)[len(found) // 2]
            yield warn(
                f"`eps` is {eps:g} where gradients are about {middle:.2g}: it outweighs what the optimizer divides by, "
                f"and the steps are about {eps / middle:,.0f} times smaller than the learning rate says",
                where="optimizer",
                hint="use the default `eps`, 1e-8",
                eps=float(eps),
                gradient=middle,
            )
            return


def _far_off(
    rehearsal: ScheduleRehearsal,
    traits: OptimizerTraits,
    moves: OptimizerStep | None,
    highest: float,
    lowest: float,
) -> Iterator[Finding]:
    for index, off in out_of_range(rehearsal, traits, moves, highest, lowest).items():
        which = f" of parameter group {index}" if len(rehearsal.base) > 1 else ""
        seen = (
            f"; one step changes the weights by {off.ratio:.2g} of their size"
            if off.ratio is not None
            else ""
        )
        yield warn(
            f"the learning rate{which} is {off.rate:.3g}, far too {'high' if off.high else 'low'} for "
            f"{traits.name}: a step moves every weight by about {off.size:.2g}{seen}"
            if traits.scaling[index] == "normalised"
            else f"the learning rate{which} is {off.rate:.3g}, far too {'high' if off.high else 'low'} for "
            f"{traits.name}{seen}",
            where="optimizer",
            hint=f"{'lower' if off.high else 'raise'} `lr`: see `debugkit explain learning-rate` for the usual rates",
            rate=off.rate,
            ratio=off.ratio,
        )
        return


def _measured(
    groups: list[dict[str, Any]], rehearsal: ScheduleRehearsal, traits: OptimizerTraits | None
) -> Finding:
    rates = sorted(
        {rate for rate, group in zip(rehearsal.peaks, groups, strict=True) if group.get("lr") is not None}
    )
    name = f"{traits.name}: " if traits is not None else ""
    if not rates:
        return note(f"{name}the optimizer chooses its own learning rate")
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    peak = "peak learning rate" if rehearsal.scheduled else "learning rate"
    return note(f"{name}{peak} {shown}", rate=rates[-1])


def _target(optimizer: Any) -> Target:
    model = mlp()
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters()))


def good() -> Target:
    return _target(lambda p: torch.optim.AdamW(p, lr=1e-3))


def good_sgd() -> Target:
    return _target(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))


def bad_zero() -> Target:
    return _target(lambda p: torch.optim.AdamW(p, lr=0.0))


def bad_too_high_for_adam() -> Target:
    return _target(lambda p: torch.optim.Adam(p, lr=1.0))


def bad_maximised() -> Target:
    return _target(lambda p: torch.optim.AdamW(p, lr=1e-3, maximize=True))


def bad_betas_swapped() -> Target:
    return _target(lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.999, 0.9)))
