"""Updates that are too small for the precision of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.optimizer_parameters import OptimizerParameters, parameters_of
from debugkit.probes.optimizer_step import Move, OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal
from debugkit.testing import blobs, mlp

from ._rates import out_of_range

_LOW = (torch.float16, torch.bfloat16)


@check
def precision_loss(
    target: Target,
    held: OptimizerParameters,
    rehearsal: ScheduleRehearsal,
    traits: OptimizerTraits | None,
    moves: OptimizerStep | None,
    *,
    fail_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="share of the values whose update rounds away, above which it is a failure",
        ),
    ] = 0.6,
    warn_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="share of the values whose update rounds away, above which it is a warning",
        ),
    ] = 0.2,
) -> Iterator[Finding]:
    """Parameters in bfloat16 or float16 lose their updates to rounding.

    One optimizer step is taken in the parameters' own precision and, tensor by tensor, in single precision. A value
    is lost where the second moves and the first does not. An optimizer that keeps what was lost (a copy in single
    precision, a compensation, random rounding) shows in several steps, and is no loss.

    ## Why is this bad?
    bfloat16 has 8 significant bits: next to a weight of 0.02, nothing smaller than 0.00006 exists. A step of 1e-5 is
    below that for most weights, so it is rounded away, and again in the next step, however often the gradient asks
    for it. The loss falls through the few weights that still move, and stops early.

    ## What to do
    Keep the weights in float32 and train under autocast (`bf16=True` in transformers, not
    `torch_dtype=torch.bfloat16`), or use an optimizer with a copy in single precision or with stochastic rounding.

    ## Known limits
    The step is taken at the highest learning rate that the schedule plans; later ones lose more.

    ## References
    - https://arxiv.org/abs/2010.06192
    - https://github.com/pytorch/ao/pull/1124
    - https://pytorch.org/blog/what-every-user-should-know-about-mixed-precision-training-in-pytorch/
    """
    named = dict(parameters_of(target))
    own = {name: p for name, p in named.items() if name in held.groups and p.requires_grad}
    if not own:
        raise Unavailable("the optimizer holds no trainable parameter of the model; see `optimizer-coverage`")
    low = [name for name, p in own.items() if p.dtype in _LOW]
    if not low:
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in own.values()})
        yield note(f"all {len(own)} trained parameters are {' and '.join(kinds)}", parameters=len(own))
        return
    if moves is None:
        raise Unavailable("no optimizer step could be measured; see `update-ratio`")
    found = [moves.moves[name] for name in low if name in moves.moves and moves.moves[name].alive]
    wanted, lost = sum(m.wanted for m in found), sum(m.lost for m in found)
    if not wanted:
        raise Unavailable("the step asks no parameter in low precision to move; see `update-ratio`")
    share = lost / wanted
    kind = str(found[0].dtype).removeprefix("torch.")
    told = f"{share:.0%} of the updates of {len(found)} {kind} tensors round away"
    measured: dict[str, Any] = {"share": share, "tensors": len(found)}
    tiny = (
        any(not off.high for off in out_of_range(rehearsal, traits, moves).values())
        if traits is not None
        else False
    )
    if moves.regained or share <= warn_share or tiny:
        kept = ", and the optimizer makes up for it" if moves.regained else ""
        yield note(f"{told} in one step{kept}", **measured)
        return
    worst = max((name for name in low if name in moves.moves), key=lambda name: _share(moves.moves[name]))
    rates = max(move.rate for move in found)
    level = fail if share > fail_share else warn
    yield level(
        f"{told}: {lost:,} of {wanted:,} values stay as they are after a step at a learning rate of {rates:.2g}",
        where=worst,
        hint=f"keep the parameters in float32 and train under {kind} autocast, or use an optimizer with float32 copies",
        **measured,
    )


def _share(move: Move) -> float:
    return move.lost / move.wanted if move.wanted else 0.0


def _step(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return torch.nn.functional.cross_entropy(model(batch[0].to(dtype)).float(), batch[1])


def good() -> Target:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=optimizer, precision="bf16")


def bad_bfloat16_weights() -> Target:
    model = mlp().bfloat16()
    return Target(
        model, blobs(), training_step=_step, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-5)
    )
