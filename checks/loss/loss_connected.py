"""The loss does not lead back to the model, is not finite, or has the wrong sign."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.loss.loss_terms import Term
from debugkit.loss.losses import ELEMENTWISE
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.non_finite import NonFinite
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.blame import advise, describe, last_cut


@check
def loss_connected(
    target: Target, step: TrainingStep | None, broken: NonFinite | None, response: LossResponse | None
) -> Iterator[Finding]:
    """The loss does not lead back to the model, is not finite, or has the wrong sign.

    One step is traced: whether the loss has a graph, whether a trainable parameter is in it, and whether it is
    finite. The loss is then differentiated with respect to every comparison of predictions with the batch that was
    seen: one that grows with the error has to have a positive derivative.

    ## Why is this bad?
    A loss without a graph trains nothing, or `backward()` raises. NaN spreads into every weight with the first
    step. With the sign flipped, training drives the predictions away from the labels as far as they go.

    ## What to do
    Follow the message to the place where the graph ends or the first NaN appears. Minimise the error: leave out
    the minus before a loss, put one before a likelihood or a similarity.

    ## Known limits
    The sign is judged for torch's loss functions, differences, distances, cosine similarities and likelihoods
    whose target comes from the batch, and only where none of them pulls the right way; terms that are maximised
    beside a supervised one (entropy, an adversary) are left alone, and so are products with expected costs.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/autograd.html
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    trainable = sum(p.requires_grad for p in target.model.parameters())
    if not trainable:
        raise Unavailable("no parameter is trainable; see `missing-gradients`")
    if step is None:
        yield _plain_number(response)
        return
    if step.is_cut_off:
        yield _cut(step, trainable)
        return
    if broken is not None:
        yield _not_finite(step, broken)
        return
    terms = [] if response is None else [term for term in response.terms if _is_supervised(term)]
    cancelled = response.cancelled if response is not None else None
    if cancelled is not None and not any(gradient.alive for gradient in step.gradients.values()):
        yield fail(
            f"the loss is constant: `{cancelled.name}` is multiplied by 0, and every gradient is 0",
            location=cancelled.location,
            hint="let the loss function's value reach the loss that is returned",
        )
        return
    away = [term for term in terms if term.pull == "away"]
    right = [term for term in terms if term.pull == "towards"]
    if away and not right and not _maximizes(target):
        yield _flipped(away[0])
        return
    reached = f"leads to {len(step.reached)} of {trainable} trainable parameters"
    yield note(f"the loss is finite ({step.loss:.4g}) and {reached}{_seen(right)}", loss=step.loss)


def _plain_number(response: LossResponse | None) -> Finding:
    if response is None or response.returned is None:
        raise Unavailable("the step does not run, so its loss can't be judged")
    return fail(response.returned, hint="return the loss tensor itself, without `.item()` or `float()`")


def _cut(step: TrainingStep, trainable: int) -> Finding:
    cut = last_cut(step.cuts)
    start = "the loss has no graph" if not step.has_graph else "the loss has a graph that no parameter is in"
    told = f"{start}, so none of the {trainable} trainable parameters gets a gradient"
    if cut is None:
        return fail(
            told, hint="return the loss tensor that the model's outputs lead to", parameters=trainable
        )
    return fail(
        f"{told}: {describe(cut)}",
        where=cut.module or None,
        location=cut.location,
        hint=advise(cut),
        parameters=trainable,
    )


def _not_finite(step: TrainingStep, broken: NonFinite) -> Finding:
    value = "NaN" if math.isnan(step.loss) else "infinite"
    if broken.kind == "batch":
        raise Unavailable(
            f"the loss is {value}, and so are values of `{broken.name}` in the batch; see `finite-inputs`"
        )
    if broken.ignored and broken.per_token:
        raise Unavailable(
            f"the loss is {value}, since every token of the first batch is ignored; see `supervised-tokens`"
        )
    if broken.ignored:
        told = (
            f"the loss is {value}: every target of `{broken.name}` in the first batch is its `ignore_index`"
        )
        hint = "look at how the labels are made: a mean over no targets is NaN"
    elif broken.kind == "parameter":
        told, hint = (
            f"the loss is {value}: the parameter `{broken.name}` is not finite",
            "initialise or load it again",
        )
    elif broken.kind == "result":
        told = f"the loss is {value}: `{broken.name}` is the first operation that gives such a value"
        if broken.infinite is not None:
            name, place = broken.infinite
            told += f", from the infinite ones of `{name}`{f' ({place})' if place else ''}"
        hint = "keep its input in its domain: no logarithm or root of 0, no division by 0, no overflow of the precision"
    else:
        told, hint = (
            f"the loss is {value} on the first batch",
            "run the step under `torch.autograd.detect_anomaly()`",
        )
    return fail(told, where=broken.module or None, location=broken.location, hint=hint)


def _is_supervised(term: Term) -> bool:
    """Whether a target is more than the constant labels of an adversary, or another prediction."""
    return term.origin == "batch" or (term.origin == "noise" and term.name in ELEMENTWISE)


def _flipped(term: Term) -> Finding:
    what = "similarity" if term.name == "cosine_similarity" else "error"
    if term.name in ("gather", "take_along_dim", "getitem", "mul", "rmul", "multiply"):
        what = "likelihood of the labels"
    told = (
        f"the loss falls as the error of `{term.name}` grows"
        if what == "error"
        else f"the loss grows with the {what} (`{term.name}`)"
    )
    return fail(
        f"{told}: minimising it drives the predictions away from their targets",
        location=term.location,
        hint="minimise the loss itself, not its negative"
        if what == "error"
        else f"minimise 1 minus the {what}"
        if what == "similarity"
        else "minimise the negative log-likelihood",
    )


def _maximizes(target: Target) -> bool:
    groups = getattr(target.optimizer, "param_groups", ())
    return any(group.get("maximize") for group in groups)


def _seen(right: list[Term]) -> str:
    if not right:
        return "; its sign was not judged, since no comparison with the batch was seen"
    names = ", ".join(dict.fromkeys(f"`{term.name}`" for term in right))
    return f"; it pulls predictions towards their targets ({names})"


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_negative_likelihood() -> Target:
    return Target(mlp(), blobs(), lambda logits, y: -logits.log_softmax(-1).gather(1, y[:, None]).mean())


def bad_loss_without_a_graph() -> Target:
    return Target(mlp(), blobs(), lambda logits, y: F.cross_entropy(logits.detach(), y))


def bad_loss_made_anew() -> Target:
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tensor(F.cross_entropy(logits, y).item(), requires_grad=True)

    return Target(mlp(), blobs(), loss)


def bad_logarithm_of_zero() -> Target:
    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        chosen = (100 * logits).softmax(-1).gather(1, 1 - y[:, None])
        return -(chosen * chosen.log()).mean()

    return Target(mlp(), blobs(), loss)


def bad_flipped_sign() -> Target:
    return Target(mlp(), blobs(), lambda logits, y: -F.cross_entropy(logits, y))
