"""Weight decay where it harms, or does not act as decay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.probes.optimizer_parameters import OptimizerParameters, parameters_of
from debugkit.probes.optimizer_step import OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal, groups_of
from debugkit.testing import blobs, mlp

from ._decay import gains_decayed, outweighed, values_of

_EXCLUDE = (
    "put tensors with fewer than two dimensions into a parameter group with `weight_decay=0`, as transformers' "
    "`Trainer` does"
)


@check
def weight_decay(
    target: Target,
    held: OptimizerParameters,
    rehearsal: ScheduleRehearsal,
    traits: OptimizerTraits | None,
    moves: OptimizerStep | None,
    *,
    on_gains: Annotated[
        float,
        Field(gt=0, description="weight decay from which on the gains of normalisations should be left out"),
    ] = 0.05,
    shrinks: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="share of a gain that decay takes in the run, below which it does not matter",
        ),
    ] = 0.01,
    coupled: Annotated[
        float,
        Field(gt=0, description="weight decay from which on L2 inside a normalised gradient is suspect"),
    ] = 1e-2,
    outweighs: Annotated[
        float, Field(gt=0, description="decay over gradient, in size, above which the loss hardly counts")
    ] = 3.0,
) -> Iterator[Finding]:
    """Weight decay pulls normalisation gains to 0, is L2 inside Adam, or outweighs the loss.

    ## Why is this bad?
    A gain of a normalisation is made to be 1; decay pulls it to 0 and shrinks the signal for no benefit. In Adam,
    `weight_decay` is added to the gradient and then normalised with it, so weights with large gradients hardly
    decay and those with small ones decay at full rate: it is not the decay that AdamW applies, and the same number
    means another thing. Decay that outweighs the gradient trains the weights towards 0, whatever the data says.

    ## What to do
    Use AdamW, and two parameter groups: matrices with decay, gains and biases without.

    ## Known limits
    Decay on gains is reported from 0.05 on and where it acts over the run; the small default of AdamW on every
    parameter is common and a note, and so is decay on biases and embeddings. L2 of less than 0.01 in Adam is a common
    choice, and a note.

    ## References
    - https://arxiv.org/abs/1711.05101
    - https://github.com/huggingface/transformers/issues/35927
    """
    groups = groups_of(target)
    decays = [float(group.get("weight_decay") or 0.0) for group in groups]
    if not any("weight_decay" in group for group in groups):
        raise Unavailable("the optimizer has no `weight_decay`")
    if not any(decays):
        yield note("no parameter decays")
        return
    findings = [
        *_outweighing(target, held, decays, traits, moves, outweighs),
        *_coupled(decays, traits, coupled),
        *_on_gains(target, held, rehearsal, decays, traits, on_gains, shrinks),
    ]
    yield from findings
    if not findings:
        yield _measured(target, held, decays)


def _outweighing(
    target: Target,
    held: OptimizerParameters,
    decays: list[float],
    traits: OptimizerTraits | None,
    moves: OptimizerStep | None,
    limit: float,
) -> Iterator[Finding]:
    if moves is None or traits is None:
        return
    for group, decay in enumerate(decays):
        ratio = outweighed(moves, traits, group, decay)
        if ratio is not None and ratio > limit:
            yield warn(
                f"`weight_decay` of {decay:g} outweighs the loss: decay pulls the weights {ratio:.2g} times as hard as "
                "the gradients do",
                where="optimizer",
                hint="lower `weight_decay` to 0.01 or 0.1 in AdamW, to 1e-4 in SGD",
                ratio=ratio,
                weight_decay=decay,
            )
            return


def _coupled(decays: list[float], traits: OptimizerTraits | None, limit: float) -> Iterator[Finding]:
    if traits is None:
        return
    found = [
        decay
        for decay, through in zip(decays, traits.couples_decay, strict=True)
        if through and decay >= limit
    ]
    if found:
        yield warn(
            f"`weight_decay` of {max(found):g} in {traits.name} is L2 inside the normalised gradient: weights with small "
            "gradients decay at the full learning rate, those with large ones hardly at all",
            where="optimizer",
            hint="use `AdamW` (or `decoupled_weight_decay=True`), where this number is a decay",
            weight_decay=max(found),
        )


def _on_gains(
    target: Target,
    held: OptimizerParameters,
    rehearsal: ScheduleRehearsal,
    decays: list[float],
    traits: OptimizerTraits | None,
    limit: float,
    shrinks: float,
) -> Iterator[Finding]:
    totals = rehearsal.total_rates
    names = []
    for group, decay in enumerate(decays):
        if decay < limit or (traits is not None and traits.couples_decay[group]):
            continue
        if totals is not None and 1 - math.exp(-min(700.0, totals[group] * decay)) < shrinks:
            continue
        names += gains_decayed(target, held, group)
    if names:
        largest = max(decays)
        pulled = (
            f", which takes {1 - math.exp(-min(700.0, max(totals) * largest)):.0%} of them over the run if nothing "
            "holds against it"
            if totals is not None
            else ""
        )
        yield warn(
            f"`weight_decay` of {largest:g} acts on {len(names)} gains of normalisations (such as `{names[0]}`){pulled}",
            where=names[0],
            hint=_EXCLUDE,
            gains=len(names),
            weight_decay=largest,
        )


def _measured(target: Target, held: OptimizerParameters, decays: list[float]) -> Finding:
    decayed = {name for name, group in held.groups.items() if decays[group] and name not in held.frozen}
    values = values_of(target, decayed)
    vectors = values_of(target, {name for name, p in parameters_of(target) if name in decayed and p.ndim < 2})
    shown = sorted({decay for decay in decays if decay})
    rate = f"{shown[0]:g}" if len(shown) == 1 else f"{shown[0]:g} to {shown[-1]:g}"
    return note(
        f"weight decay of {rate} on {values:,} values, {vectors / values:.1%} of them gains and biases"
        if values
        else f"weight decay of {rate}",
        values=values,
        vectors=vectors,
    )


class _Normed(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(8, 32), torch.nn.LayerNorm(32), torch.nn.ReLU(), mlp(features=32))


def _target(make: Any) -> Target:
    torch.manual_seed(0)
    model = _Normed()
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=make(model), training_steps=10_000)


def good() -> Target:
    return _target(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3))


def good_two_groups() -> Target:
    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-3)

    return _target(make)


def bad_gains() -> Target:
    return _target(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))


def bad_l2_in_adam() -> Target:
    return _target(lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.01))


def bad_outweighs_the_loss() -> Target:
    return _target(lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=10.0))
