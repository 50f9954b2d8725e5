"""A term of the loss that trains nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.loss.loose_terms import LooseTerm
from debugkit.loss.term import LossTerm
from debugkit.probes.balance_loss import BalanceLoss
from debugkit.probes.loss_tail import LossTail
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

_TERM = re.compile(r"loss|aux|penalt|regul|commit|(^|_|\.)(kl|kld|reg)(_|$)", re.IGNORECASE)


@check
def auxiliary_loss(
    tail: LossTail, balance: BalanceLoss | None, step: TrainingStep | None
) -> Iterator[Finding]:
    """A term of the loss is computed or configured, and trains nothing.

    Every number with a gradient that one step computes is followed to the loss. A term is reported that the loss does
    not depend on, that is added without its gradient (`detach`, `item`), or that is multiplied by 0; and the
    balance loss of a mixture of experts whose weight is configured while the loss is computed without it.

    ## Why is this bad?
    The head behind such a term stays as it was initialised. Without its balance loss a router sends most tokens to a
    few experts, and the others hardly learn. The training loss shows nothing: it is lower without the term.

    ## What to do
    Add the term to the loss that the step returns, as a tensor. transformers adds the balance loss only with
    `output_router_logits=True` in the config. Compute a metric under `torch.no_grad()`, or log it with `.item()`.

    ## Known limits
    A number that is logged or kept counts as a metric, unless its name says that it is a loss or nothing else trains
    the weights behind it. Weights that are 0 for a warm-up are reported only where a whole head waits for them.
    The default weight of an architecture's balance loss is a note: nobody asked for it.

    ## References
    - https://arxiv.org/abs/2101.03961
    - https://huggingface.co/docs/transformers/model_doc/mixtral
    """
    if step is not None and step.is_cut_off:
        raise Unavailable("the loss trains no parameter at all; see `loss-connected`")
    findings = {(f.message, f.location): f for f in map(_judge, tail.loose) if f is not None}
    yield from findings.values()
    if balance is not None:
        yield _balance(balance)
    if any(finding.level == "warn" for finding in findings.values()):
        return
    counted = ", ".join(f"`{term.name}`{_weight(term)}" for term in tail.terms if term.name != "difference")
    yield note(f"the loss is made of {counted or 'terms that are written out'}; no term is left out")


def _judge(term: LooseTerm) -> Finding | None:
    if term.kind == "cut off":
        return _cut_off(term) if term.by_user else None
    if term.kind == "without weight":
        return _without_weight(term) if term.by_user else None
    named = term.place is not None and term.place != "loss" and _TERM.search(term.place) is not None
    alone = bool(term.trains) and term.by_user and (term.name is not None or named)
    dead = term.by_user and not (term.read or term.held)
    if alone or ((dead or (named and not term.read)) and not term.shared):
        return warn(
            f"{_what(term)} is computed and is no part of the loss: it trains nothing{_behind(term)}",
            where=term.place,
            location=term.location,
            hint="add it to the loss that the step returns; a metric belongs under `torch.no_grad()`",
        )
    if term.name is not None and term.by_user:
        return note(f"`{term.name}` is computed beside the loss and trains nothing", location=term.location)
    return None


def _cut_off(term: LooseTerm) -> Finding:
    return warn(
        f"{_what(term)} is added to the loss without its gradient: it moves the number that is shown and trains "
        f"nothing{_behind(term)}",
        location=term.location,
        hint="add the tensor itself, without `.detach()`, `.item()` or `torch.no_grad()`",
    )


def _without_weight(term: LooseTerm) -> Finding:
    message = f"{_what(term)} is multiplied by 0 and trains nothing{_behind(term)}"
    if not term.trains:
        return note(message, location=term.location)
    return warn(
        message,
        location=term.location,
        hint="give the term a weight above 0; an integer division can make one 0",
    )


def _balance(balance: BalanceLoss) -> Finding:
    set_to = f"`{balance.coefficient}` is {balance.value:g}"
    if balance.left_out:
        return warn(
            f"{set_to}, the model computes the balance loss of the experts (`aux_loss`), and the loss of the step leaves "
            "it out",
            where=balance.coefficient,
            hint="add `outputs.aux_loss` times the coefficient, or start from `outputs.loss`, which contains it",
            coefficient=balance.value,
        )
    if not balance.matters:
        return note(f"{set_to}, and this model's loss takes no part of it, whatever `{balance.switch}` is")
    if balance.on:
        return note(
            f"{set_to}, and the loss contains it ({balance.without:.4g} without, {balance.with_it:.4g} with)"
        )
    message = (
        f"{set_to} and has no effect: the loss is without the balance loss of the experts ({balance.without:.4g}; with "
        f"it {balance.with_it:.4g}), because `{balance.switch}` is off"
    )
    if not balance.trainable or not balance.chosen:
        why = "the weight is the architecture's default" if balance.trainable else "the router is frozen"
        return note(f"{message}; {why}")
    return warn(
        message,
        where=balance.coefficient,
        hint=f"set `{balance.switch} = True`, or the coefficient to 0 where balance is not wanted",
        coefficient=balance.value,
    )


def _what(term: LooseTerm) -> str:
    return f"`{term.name or term.place}`" if term.name or term.place else "a term"


def _behind(term: LooseTerm) -> str:
    if not term.trains:
        return ""
    more = f" and {len(term.trains) - 1} more" if len(term.trains) > 1 else ""
    return f", and nothing else trains `{term.trains[0]}`{more}"


def _weight(term: LossTerm) -> str:
    if term.weights is None or term.weights.numel() != 1:
        return ""
    return f" (weight {float(term.weights):.3g})"


class _TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(classes=16)
        self.kind = torch.nn.Linear(16, 4)
        self.side = torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x).relu()
        return self.kind(features), self.side(features)


def _target(combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Target:
    def training_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        kind, side = model(x)
        return combine(F.cross_entropy(kind, y), F.cross_entropy(side, y % 2))

    return Target(_TwoHeads(), blobs(classes=4), training_step=training_step)


def good() -> Target:
    return _target(lambda main, side: main + 0.3 * side)


def bad_term_never_added() -> Target:
    return _target(lambda main, side: main)


def bad_term_detached() -> Target:
    return _target(lambda main, side: main + 0.3 * side.detach())


def bad_weight_of_zero() -> Target:
    return _target(lambda main, side: main + (1 // 3) * side)
