"""The size of one step against the size of the weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.initial_state import InitialState
from debugkit.probes.optimizer_step import Move, OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal
from debugkit.probes.schedule_rehearsal import groups_of as optimizer_groups
from debugkit.testing import blobs, mlp
from debugkit.weights.parameters import groups_of, places

from ._decay import outweighed
from ._rates import matrices, median_ratios, out_of_range

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_TINY_GRADIENT = 1e-2
_FAINT = 1e-3
_FAR_BELOW = 1e-3
_FEWEST_LEARNED = 4


@check
def update_ratio(
    target: Target,
    moves: OptimizerStep,
    rehearsal: ScheduleRehearsal,
    traits: OptimizerTraits | None,
    state: InitialState | None,
    *,
    highest: Annotated[
        float, Field(gt=0, description="median of update over weight above which a step is too large")
    ] = 0.5,
    highest_trained: Annotated[
        float,
        Field(
            gt=0, description="the same for weights that are trained already, which have something to lose"
        ),
    ] = 0.1,
    lowest: Annotated[
        float, Field(ge=0, description="median of update over weight below which a step is too small")
    ] = 1e-6,
) -> Iterator[Finding]:
    """One optimizer step moves the weights by far too much, by next to nothing, or a part of them not at all.

    One forward, backward and step on a few rows at the highest planned learning rate; every tensor is stepped on a
    copy. The ratio is the root mean square of the update over that of the weights, for matrices that are not zero.

    ## Why is this bad?
    A step of about a thousandth of the weights is usual. One as large as the weights wipes out what they held; at a
    millionth, training takes a million steps to change them. A part that does not move at all, while it gets
    gradients, is left behind by the optimizer: a rate so small that it rounds away, or a step that skips it.

    ## What to do
    Change the learning rate of that part by the factor that is missing. Look at the layer-wise decay of the rates, and
    at custom optimizers that skip tensors.

    ## Known limits
    The first step of an optimizer with momentum is smaller than later ones; where it is larger (RMSprop, Adagrad), later
    ones count. A step counts as too large only if
    it is with gradients clipped to a norm of 1 as well. A loop that gives a group its rate by hand later should set it
    before the checks. Where the rate itself is out of range, `learning-rate` says
    so. A linear model, which has one matrix only, loses nothing by a large first step.

    ## References
    - https://cs231n.github.io/neural-networks-3/#ratio
    """
    ratios = median_ratios(moves)
    trained = [name for name, move in moves.moves.items() if move.trainable and move.alive]
    if not trained:
        raise Unavailable("the optimizer holds no tensor that gets a gradient; see `optimizer-coverage`")
    if not any(rehearsal.peaks) and not _chooses_its_rate(target):
        raise Unavailable("the learning rate is 0; see `learning-rate` and `schedule`")
    off = out_of_range(rehearsal, traits, moves) if traits is not None else {}
    unjudged = {*off} | _explained(target, moves, traits)
    findings = [
        *_without_rate(target, moves),
        *_unmoved(target, moves, off.keys()),
        *_sizes(moves, rehearsal, unjudged, _early(traits), highest, lowest),
    ]
    if not findings and state is not None and state.trained:
        findings += _overwritten(moves, state, unjudged, highest_trained * _early(traits))
    yield from findings
    if findings:
        return
    if ratios is None:
        yield note(f"one step moves all {len(trained)} tensors that get a gradient", parameters=len(trained))
        return
    found = sorted(matrices(moves), key=lambda move: move.ratio)
    yield note(
        f"one step changes the matrices by {ratios[0]:.2g} of their size (median of {len(found)}, from "
        f"{found[0].ratio:.2g} to {found[-1].ratio:.2g})",
        ratio=ratios[0],
        smallest=found[0].ratio,
        largest=found[-1].ratio,
    )


def _without_rate(target: Target, moves: OptimizerStep) -> Iterator[Finding]:
    """Groups whose learning rate is 0 all through the schedule, while others train."""
    rated = {i for i, group in enumerate(optimizer_groups(target)) if group.get("lr") is not None}
    still = [
        name
        for name, move in moves.moves.items()
        if move.trainable and move.alive and not move.rate and move.group in rated and not move.update
    ]
    model = [name for name in still if not name.startswith("loss_fn.")]
    if model and any(move.rate for move in moves.moves.values()):
        groups = list(groups_of(target.model, model))
        values = sum(target.model.get_parameter(name).numel() for name in model)
        yield fail(
            f"the learning rate of {places(groups)} is 0 at every planned step ({len(model)} parameters with {values:,} "
            "values), while the rest trains: gradients are computed for it and it never moves",
            where=groups[0].name,
            hint="set `lr` of this parameter group above 0 (a division of whole numbers may have made it 0), or freeze it "
            "with `requires_grad_(False)`",
            parameters=len(model),
        )


def _overwritten(
    moves: OptimizerStep, state: InitialState, unjudged: set[int], highest: float
) -> Iterator[Finding]:
    """A step that is too large for weights that hold what an earlier training learned."""
    known = {parameter for (parameter, _), found in state.states.items() if found == "trained"}
    learned = [
        move
        for name, move in moves.moves.items()
        if name in known and move.trainable and move.alive and move.weight and move.group not in unjudged
    ]
    if len(learned) < _FEWEST_LEARNED:
        return
    ratio = statistics.median(min(move.ratio, move.clipped_ratio) for move in learned)
    if ratio > highest:
        rate = max(move.rate for move in learned)
        yield warn(
            f"one step changes the {len(learned)} trained matrices by {ratio:.2g} of their size at a learning rate of "
            f"{rate:.3g}: what they have learned is gone within a few steps",
            where="optimizer",
            hint=f"lower the learning rate about {ratio / 1e-3:,.0f} times, to that of fine-tuning",
            ratio=ratio,
            rate=rate,
        )


def _unmoved(target: Target, moves: OptimizerStep, off: Collection[int]) -> Iterator[Finding]:
    named = {n: m for n, m in moves.moves.items() if m.trainable and m.alive and not n.startswith("loss_fn.")}
    usual = statistics.median(move.gradient or 0.0 for move in named.values()) if named else 0.0
    highest = max(move.rate for move in moves.moves.values())
    any_moves = any(move.update for move in named.values())
    unrated = {i for i, group in enumerate(optimizer_groups(target)) if group.get("lr") is None}
    still = [
        name
        for name, move in named.items()
        if not move.update
        and move.weight
        and move.dtype not in _LOW_PRECISION
        and move.group not in off
        and (move.rate or move.group in unrated)
        and (not move.asked or move.rate < _FAR_BELOW * highest or not any_moves)
        and (move.gradient or 0.0) > _FAINT * usual
    ]
    if not still:
        return
    groups = list(groups_of(target.model, still))
    rates = sorted({moves.moves[name].rate for name in still})
    values = sum(target.model.get_parameter(name).numel() for name in still)
    yield fail(
        f"one step leaves {places(groups)} exactly as it is ({len(still)} parameters with {values:,} values), though "
        f"it gets gradients and its learning rate is {rates[-1]:.2g}",
        where=groups[0].name,
        hint="raise the learning rate of this part, or see that `step` updates it",
        parameters=len(still),
        rate=rates[-1],
    )


def _sizes(
    moves: OptimizerStep,
    rehearsal: ScheduleRehearsal,
    unjudged: set[int],
    early: float,
    highest: float,
    lowest: float,
) -> Iterator[Finding]:
    """The groups that share a learning rate, together: a group of one unusual matrix tells little."""
    for rate in dict.fromkeys(rehearsal.peaks):
        groups = [i for i, peak in enumerate(rehearsal.peaks) if peak == rate and i not in unjudged]
        ratios = median_ratios(moves, groups)
        if ratios is None or not rate:
            continue
        found = matrices(moves, groups)
        told = (
            f"one step changes the matrices by {ratios[0]:.2g} of their size (median of {len(found)}) at a learning rate "
            f"of {rate:.3g}"
        )
        if min(ratios) / early > highest and len(matrices(moves)) > 1:
            yield warn(
                f"{told}: it overwrites what they hold",
                where="optimizer",
                hint=f"lower the learning rate about {max(2.0, min(ratios) / 1e-2):,.0f} times",
                ratio=ratios[0],
                rate=rate,
            )
        elif 0 < ratios[0] < lowest and _asks_for_more(moves, found):
            yield warn(
                f"{told}: {1 / ratios[0]:,.0f} such steps would change them by as much as they are",
                where="optimizer",
                hint="raise the learning rate",
                ratio=ratios[0],
                rate=rate,
            )


def _asks_for_more(moves: OptimizerStep, found: Sequence[Move]) -> bool:
    """Whether the gradient itself is not tiny against the weights, as it is when little is left to learn."""
    pulls = [(move.gradient or 0.0) / move.weight for move in found]
    return moves.gradient_norm > _TINY_GRADIENT and statistics.median(pulls) > 1e-4


def _early(traits: OptimizerTraits | None) -> float:
    """By how much a first step is larger than later ones."""
    return max(1.0, *traits.early) if traits is not None else 1.0


def _explained(target: Target, moves: OptimizerStep, traits: OptimizerTraits | None) -> set[int]:
    """The groups whose step tells nothing: of optimizers that adapt their own rate, or moved by weight decay alone."""
    found = set()
    for index, group in enumerate(optimizer_groups(target)):
        if traits is not None:
            pull = outweighed(moves, traits, index, float(group.get("weight_decay") or 0.0))
            if traits.scaling[index] == "other" or (pull or 0.0) > 1:
                found.add(index)
    return found


def _chooses_its_rate(target: Target) -> bool:
    return any(group.get("lr") is None for group in optimizer_groups(target))


def _target(optimizer: Callable[[Iterator[torch.nn.Parameter]], torch.optim.Optimizer]) -> Target:
    model = mlp()
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters()))


def good() -> Target:
    return _target(lambda p: torch.optim.AdamW(p, lr=1e-3))


def good_sgd() -> Target:
    return _target(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))


def bad_layer_wise_decay_too_steep() -> Target:
    model = mlp()
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3 * 0.1**12},
        {"params": model[2].parameters(), "lr": 1e-3},
    ]
    return Target(
        model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(groups, weight_decay=0.0)
    )


def bad_steps_far_too_small() -> Target:
    return _target(lambda p: torch.optim.SGD(p, lr=5e-7))
