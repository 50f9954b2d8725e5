"""Which weights training moves, and which it never does."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import LayerLog, LoopRecord, OptimizerLog
from debugkit.probes.movement import by_block
from debugkit.testing import blobs, mlp, watched

_ROUNDING = 1e-6
"""Norm of a gradient that may be nothing but rounding, as that of a bias before a BatchNorm."""
_BLOCKS = 8
"""Blocks of a model that the note tells apart."""
_PUSH = 10.0
"""An update, in units of rounding, that moves at least one element."""


@check
def weights_moving(
    loop: LoopRecord,
    *,
    least_steps: Annotated[int, Field(ge=3, description="Steps before a weight that stays is judged.")] = 10,
    share: Annotated[
        float, Field(gt=0, le=1, description="Share of the elements with a gradient that never move.")
    ] = 0.5,
) -> Iterator[Finding]:
    """Trainable weights never move, or stop moving.

    Of each parameter 256 elements are compared before and after a step, at the first 20 steps and every 50th; where
    these do not move, all elements count.

    ## Why is this bad?
    What does not move is not trained: a learning rate of zero, an optimizer that holds the weights of a layer that
    was replaced afterwards, an optimizer that writes to a copy, or updates that are rounded away in bfloat16. The rest of the model trains around it,
    and the loss still falls.

    ## What to do
    Make the optimizer after the model is complete and on its device. Check the learning rate of each group. Keep
    weights that get small updates in float32.

    ## Known limits
    Parameters without a gradient (an unused pooler, rare experts) are counted in the note only. How far a block has
    moved since the first look is estimated from the elements that are compared, and is relative to its norm then; a
    block that began at zero has no such number.

    ## References
    - https://cs231n.github.io/neural-networks-3/#ratio
    - https://github.com/pytorch/pytorch/issues/115607
    """
    judged = [log for log in loop.optimizers if log.steps >= least_steps and log.layers]
    replaced = [finding for log in loop.optimizers for finding in _replaced(log, loop)]
    if not judged and not replaced:
        raise Unavailable(f"no optimizer took {least_steps} steps while the loop was watched")
    yield from replaced
    for log in judged:
        findings = [*_nothing_moves(log)] or [*_stopped(log, least_steps)]
        findings = findings or [*_one_stays(log)] or [*_much_stays(log, share)]
        yield from findings
        yield from _pace(log)
        yield from _movement(log)


def _nothing_moves(log: OptimizerLog) -> Iterator[Finding]:
    fed = [layer for layer in log.layers if layer.with_gradient and layer.gradient > _ROUNDING]
    if not fed or any(layer.moved for layer in fed):
        return
    rate = max(layer.rate for layer in fed)
    zero = rate == 0
    yield fail(
        f"none of the {len(fed)} parameters of `{log.name}` that get gradients moved in {log.steps} steps"
        + ("; the learning rate is 0" if zero else f" at a learning rate of {rate:.3g}"),
        where=fed[0].name,
        hint="set a learning rate, and check what the schedule makes of it"
        if zero
        else "check what changes the weights back, or raise the learning rate",
        steps=log.steps,
        rate=rate,
    )


def _stopped(log: OptimizerLog, looks: int) -> Iterator[Finding]:
    """Parameters that moved, and stay now although neither gradients nor rates have become small."""
    fed = [layer for layer in log.layers if layer.moved and layer.gradient > _ROUNDING]
    if len(fed) > 1 and all(layer.still >= looks for layer in fed):
        looks = min(layer.still for layer in fed)
        yield fail(
            f"all {len(fed)} parameters of `{log.name}` that moved at first have stopped moving: they stayed in each "
            f"of the latest {looks} steps looked at (of {log.steps}), with gradients and learning rates as before",
            where=fed[0].name,
            hint="check what the optimizer's `step` does since then; run it without `torch.compile`",
            steps=log.steps,
            looks=looks,
        )


def _one_stays(log: OptimizerLog) -> Iterator[Finding]:
    """Parameters that stay in every bit, where the smallest optimizer would have moved them."""
    fed = [layer for layer in log.layers if layer.with_gradient > 0.5 * layer.windows and layer.rate > 0]
    stuck = [layer for layer in fed if not layer.moved and layer.push > _PUSH and layer.size > 1]
    if stuck and any(layer.moved for layer in fed):
        more = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
        yield warn(
            f"`{stuck[0].name}`{more} got gradients in {log.steps} steps of `{log.name}` and did not move by a bit, "
            f"where plain gradient descent would have moved it by {stuck[0].push:.0f} times its rounding: the "
            "updates do not reach it",
            where=stuck[0].name,
            hint="check that the optimizer writes to this tensor itself; store it `.contiguous()`",
            parameters=len(stuck),
            push=stuck[0].push,
        )


def _much_stays(log: OptimizerLog, share: float) -> Iterator[Finding]:
    fed = [
        layer
        for layer in log.layers
        if layer.with_gradient > 0.5 * layer.windows and layer.rate > 0 and layer.gradient > _ROUNDING
    ]
    still = [layer for layer in fed if not layer.moved]
    elements = sum(layer.size for layer in still)
    if still and elements > share * sum(layer.size for layer in fed):
        yield warn(
            f"{len(still)} of {len(fed)} parameters of `{log.name}` got gradients in {log.steps} steps and did not "
            "move: their updates are too small for their precision",
            where=still[0].name,
            hint="keep these weights in float32, or raise their learning rate",
            parameters=len(still),
        )


def _replaced(log: OptimizerLog, loop: LoopRecord) -> Iterator[Finding]:
    """Tensors that no called model holds, while the models have trainable ones that no optimizer holds."""
    lost = [layer for layer in log.layers if not layer.in_model and layer.windows >= 3]
    lost = [layer for layer in lost if not layer.with_gradient and not layer.moved and layer.requires_grad]
    if lost and loop.unheld and any(layer.in_model for layer in log.layers):
        yield fail(
            f"`{log.name}` holds {len(lost)} tensors that are in no model that is trained, while {len(loop.unheld)} "
            f"trained ones are in no optimizer: `{loop.unheld[0]}` gets gradients and stays as it is",
            where=loop.unheld[0],
            hint="make the optimizer after the last change of the model's layers",
            lost=len(lost),
            unheld=len(loop.unheld),
        )


def _pace(log: OptimizerLog) -> Iterator[Finding]:
    paces = [(layer.name, median(layer.ratios)) for layer in log.layers if _matters(layer)]
    still = sum(not layer.moved for layer in log.layers)
    if not paces:
        return
    slow, fast = min(paces, key=lambda pace: pace[1]), max(paces, key=lambda pace: pace[1])
    last = paces[-1]
    yield note(
        f"an update is {median(pace for _, pace in paces):.1e} of a weight (median); least in `{slow[0]}` "
        f"({slow[1]:.1e}), most in `{fast[0]}` ({fast[1]:.1e}), `{last[0]}` {last[1]:.1e}; {still} of "
        f"{len(log.layers)} parameters stay",
        median=median(pace for _, pace in paces),
        still=still,
    )


def _movement(log: OptimizerLog) -> Iterator[Finding]:
    """Head against body: how far each block is from where it was."""
    blocks = by_block(log.layers)
    if not blocks:
        return
    shown = blocks if len(blocks) <= _BLOCKS else [*blocks[: _BLOCKS // 2], *blocks[-_BLOCKS // 2 :]]
    parts = [f"`{name}` {share:.2g}" if share else f"`{name}` nothing" for name, share in shown]
    more = f" ({len(blocks) - len(shown)} blocks between left out)" if len(shown) < len(blocks) else ""
    yield note(
        f"moved since the first look, in {log.steps} steps and relative to the weights: {', '.join(parts)}{more}",
        least=min(share for _, share in blocks),
        most=max(share for _, share in blocks),
    )


def _matters(layer: LayerLog) -> bool:
    return layer.moved and len(layer.ratios) > 0 and layer.size > 1


class _Idle(torch.optim.Adam):
    """Stops working after a step, or leaves one parameter as it is."""

    def __init__(self, parameters: Any, *, after: int, but: int | None) -> None:
        super().__init__(parameters, lr=1e-3)
        self.left, self.but = after, but

    def step(self, closure: Any = None) -> Any:
        kept = [p for group in self.param_groups for p in group["params"]]
        kept = kept if self.left <= 0 else [] if self.but is None else kept[self.but : self.but + 1]
        before = [p.detach().clone() for p in kept]
        super().step(closure)
        self.left -= 1
        with torch.no_grad():
            for p, value in zip(kept, before, strict=True):
                p.copy_(value)


def _train(mistake: str | None) -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0 if mistake == "rate" else 1e-3)
    if mistake in ("stuck", "one"):
        optimizer = _Idle(
            model.parameters(), after=4 if mistake == "stuck" else 99, but=0 if mistake == "one" else None
        )
    if mistake == "head":
        model[2] = torch.nn.Linear(32, 2)
    for x, y in [*loader] * 8:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def good() -> LoopRecord:
    return watched(lambda: _train(None))


def bad_learning_rate() -> LoopRecord:
    return watched(lambda: _train("rate"))


def bad_head_replaced() -> LoopRecord:
    return watched(lambda: _train("head"))


def bad_stops() -> LoopRecord:
    return watched(lambda: _train("stuck"))


def bad_one_stays() -> LoopRecord:
    return watched(lambda: _train("one"))
