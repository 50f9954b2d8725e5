"""Frozen parameters that move, and a model in which almost nothing trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.model_state import ModelState
from debugkit.probes.optimizer_parameters import OptimizerParameters
from debugkit.probes.optimizer_step import OptimizerStep
from debugkit.testing import blobs, mlp


@check
def frozen_parameters(
    target: Target,
    state: ModelState,
    held: OptimizerParameters | None,
    moves: OptimizerStep | None,
    *,
    almost_all: Annotated[
        float, Field(gt=0, lt=1, description="share of the values that are frozen, above which it is suspect")
    ] = 0.999,
) -> Iterator[Finding]:
    """A training step moves what is frozen, or almost everything is frozen.

    One forward, backward and optimizer step is taken on a few rows; frozen tensors that the optimizer holds are
    stepped as it would step them.

    ## Why is this bad?
    `requires_grad=False` stops gradients, not optimizers: a tensor whose gradient is a zero tensor instead of `None`
    still gets momentum and weight decay, and so does one that is "frozen" by a hook that zeroes its gradient. A frozen
    copy that shares memory with a trained one, such as a reference model, moves with it and is no reference. An
    embedding with `max_norm` rewrites its rows in every forward pass.

    ## What to do
    Leave frozen tensors out of the optimizer, or clear gradients with `set_to_none=True`, the default. Make frozen
    copies with `copy.deepcopy`.

    ## Known limits
    A frozen tensor that the model's own forward writes to (a moving average of another one, a memory) is a note.
    Buffers of frozen normalisations are left to `eval-mode`, parameters that no module registers to
    `missing-gradients`.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html
    - https://github.com/KellerJordan/Muon/issues/54
    """
    flags = {name: flag for name, flag in state.requires_grad.items() if flag is False}
    hooked = _frozen_by_hook(moves)
    if not flags and not hooked:
        raise Unavailable("no parameter of the model is frozen")
    findings = [*_aliases(held), *_stepped(moves, hooked), *_written(target, moves)]
    yield from findings
    if not any(finding.level == "fail" for finding in findings):
        yield from _almost_all(target, almost_all)
        looked = "a training step moves none of them" if moves is not None else "no step was taken"
        yield note(
            f"{len(flags)} of {len(state.requires_grad)} parameters are frozen; {looked}", frozen=len(flags)
        )


def _frozen_by_hook(moves: OptimizerStep | None) -> list[str]:
    """Parameters whose gradient a hook makes zero throughout."""
    found = moves.moves.items() if moves is not None else ()
    return [name for name, move in found if move.trainable and move.hooked and move.gradient == 0]


def _aliases(held: OptimizerParameters | None) -> Iterator[Finding]:
    if held is None or not held.aliases:
        return
    frozen, trained = held.aliases[0]
    others = f" ({len(held.aliases)} such pairs)" if len(held.aliases) > 1 else ""
    yield fail(
        f"`{frozen}` is frozen and shares its memory with `{trained}`, which trains: it moves along{others}",
        where=frozen,
        hint="copy the values (`copy.deepcopy` of the module, `.clone()` of the tensor), or use one `Parameter` for both",
        pairs=len(held.aliases),
    )


def _stepped(moves: OptimizerStep | None, hooked: Sequence[str]) -> Iterator[Finding]:
    if moves is None:
        return
    moved = [name for name, move in moves.moves.items() if not move.trainable and move.update]
    if moved:
        zero = all(moves.moves[name].gradient is not None for name in moved)
        why = (
            "their gradients are zero tensors, so momentum and weight decay still act"
            if zero
            else "the optimizer moves tensors without a gradient"
        )
        yield fail(
            f"an optimizer step moves {_count(moved, 'frozen parameter')} ({_examples(moved)}): {why}",
            where=moved[0],
            hint="leave frozen parameters out of the optimizer"
            + (", and clear gradients with `zero_grad(set_to_none=True)`" if zero else ""),
            parameters=len(moved),
        )
    if still := [name for name in hooked if moves.moves[name].update]:
        yield fail(
            f"a hook zeroes the gradient of {_count(still, 'parameter')} ({_examples(still)}), and an optimizer step moves "
            "it all the same: momentum or weight decay still acts",
            where=still[0],
            hint="freeze it with `requires_grad_(False)`, or give it a parameter group with `weight_decay=0`",
            parameters=len(still),
        )


def _written(target: Target, moves: OptimizerStep | None) -> Iterator[Finding]:
    if moves is None or not moves.touched:
        return
    renormed = [
        f"{name}.weight".lstrip(".")
        for name, module in target.model.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.max_norm is not None
    ]
    if caught := [name for name in moves.touched if name in renormed]:
        yield fail(
            f"a forward pass rewrites the frozen `{caught[0]}`: `max_norm` rescales the rows that it looks up",
            where=caught[0],
            hint="leave `max_norm` out where the table is frozen",
            parameters=len(caught),
        )
    if others := [name for name in moves.touched if name not in caught]:
        yield note(
            f"the model's own forward writes to {_count(others, 'frozen parameter')} ({_examples(others)})",
            where=others[0],
            parameters=len(others),
        )


def _almost_all(target: Target, limit: float) -> Iterator[Finding]:
    named = dict(target.model.named_parameters())
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    values, trained = (sum(p.numel() for p in part.values()) for part in (named, trainable))
    if not trainable or trained > (1 - limit) * values or any(p.ndim > 1 for p in trainable.values()):
        return
    alike = [
        name
        for name, p in named.items()
        if p.ndim < 2 and {name.rpartition(".")[2]} & {_leaf(n) for n in trainable}
    ]
    if len(trainable) > 0.5 * len(alike):
        return
    yield warn(
        f"only {len(trainable)} of {len(named)} parameters train, {trained:,} of {values:,} values "
        f"({_examples(list(trainable))}), and no weight matrix is among them",
        where=next(iter(trainable)),
        hint="look at how the frozen parameters were chosen: a name that matches no head freezes it too",
        trainable=len(trainable),
        values=trained,
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''}"


def _examples(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:2]) + (", …" if len(names) > 2 else "")


def _target(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Target:
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=optimizer)


def _body_frozen() -> torch.nn.Sequential:
    model = mlp()
    model[0].requires_grad_(False)
    return model


def good() -> Target:
    model = _body_frozen()
    return _target(model, torch.optim.AdamW(model.parameters()))


def bad_zero_gradients_kept() -> Target:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    model[0].requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    return _target(model, optimizer)


def bad_frozen_by_a_hook() -> Target:
    model = mlp()
    for parameter in model[0].parameters():
        parameter.register_hook(lambda gradient: gradient * 0)  # type: ignore[no-untyped-call]
    return _target(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))


def bad_shares_memory() -> Target:
    class Student(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.reference = mlp(), mlp()
            for own, other in zip(self.reference.parameters(), self.body.parameters(), strict=True):
                own.data = other.data
                own.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.body(x) - 0.1 * self.reference(x)
            return logits

    model = Student()
    return _target(model, torch.optim.AdamW(model.body.parameters()))
