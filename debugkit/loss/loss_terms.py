"""What a loss is made of: comparisons of predictions with the batch, and which way each pulls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from debugkit.tracing.flow import Flow, LossUse, Meeting
from debugkit.tracing.graph import producers

_DIFFERENCES = frozenset({"sub", "rsub", "subtract", "isub"})
_DISTANCES = frozenset({"cdist", "dist", "pairwise_distance"})
_LIKELIHOODS = frozenset({"gather", "take_along_dim", "getitem", "mul", "rmul", "multiply"})
_PROBABILITIES = frozenset({"softmax", "log_softmax", "sigmoid", "logsigmoid"})
_ROUNDING = 1e-2

Pull = Literal["towards", "away", "none", "unclear"]
Origin = Literal["batch", "prediction", "noise", "constant"]


@dataclass(frozen=True)
class Term:
    """A part of the loss that holds a prediction against something from the batch.

    Attributes:
        name: the function.
        is_loss: whether it is one of torch's loss functions.
        location: the user's source line.
        sources: the parts of the batch behind the target.
        origin: whether the target comes from the ``batch``, is itself a ``prediction``, is ``noise`` or other numbers
            that differ, or a ``constant``.
        fed: whether the model gets the sources as well, as an autoencoder does.
        pull: whether minimising the loss brings the prediction ``towards`` the target, or ``away`` from it;
            ``none`` where the loss does not depend on this part.
        weight: the derivative of the loss with respect to it, for a scalar; ``nan`` otherwise.
    """

    name: str
    is_loss: bool
    location: str | None
    sources: frozenset[str]
    origin: Origin
    fed: bool
    pull: Pull
    weight: float = math.nan


def terms(flow: Flow, loss: torch.Tensor) -> Iterator[Term]:
    """The parts of the loss that hold predictions against the batch, in order."""
    compared = [met for met in flow.meetings if _is_comparison(met)]
    edges = [call.given["input"] for call in flow.calls] + [met.predicted for met in compared]
    results = [*(call.result for call in flow.calls), *(met.result for met in compared)]
    slopes = _slopes(flow, loss, results, edges)
    pull: Pull | None
    for number, call in enumerate(flow.calls):
        slope = slopes[number]
        pull = "unclear" if slope is None else _sign(slope, away_uniform=call.result.ndim > 0)
        weight = float(slope) if slope is not None and slope.numel() == 1 else math.nan
        fed = bool(call.sources & flow.fed)
        yield Term(call.name, True, call.location, call.sources, _origin(flow, call), fed, pull, weight)
    for met, slope in zip(compared, slopes[len(flow.calls) :], strict=True):
        if slope is not None and (pull := _pull(flow, loss, met, slope)) is not None:
            sources = flow.sources(met.batch)
            fed = bool(sources & flow.fed)
            yield Term(met.name, False, met.location, sources, "batch", fed, pull)


def _is_comparison(met: Meeting) -> bool:
    if met.name in _DIFFERENCES:
        return met.batch.shape == met.predicted.shape
    if met.name in _LIKELIHOODS:
        return _is_probability(met.predicted)
    return met.name in _DISTANCES or met.name == "cosine_similarity"


def _origin(flow: Flow, call: LossUse) -> Origin:
    target = call.given["target"]
    if call.sources:
        return "batch"
    if not isinstance(target, torch.Tensor) or not target.numel():
        return "constant"
    if flow.mark(target).predicted:
        return "prediction"
    return "noise" if bool((target != target.flatten()[:1]).any()) else "constant"


def _pull(flow: Flow, loss: torch.Tensor, met: Meeting, slope: torch.Tensor) -> Pull | None:
    if met.name in _DIFFERENCES:
        return _of_difference(flow, loss, met)
    if met.name in _DISTANCES:
        return _sign(slope)
    if met.name == "cosine_similarity":
        return _sign(-slope)
    if not met.name.endswith(("mul", "multiply")):
        if 2 in met.predicted.shape[1:] and not flow.is_given(met.batch):
            return None  # of two classes, it may pick the wrong one on purpose
        return _sign(-slope, away_uniform=True)
    if not _picks_labels(flow, met):
        return None
    return _sign(-slope[met.batch.broadcast_to(slope.shape) != 0], away_uniform=True)


def _picks_labels(flow: Flow, met: Meeting) -> bool:
    """Whether a product picks the likelihoods of labels, and is no expected cost, which is to be small.

    A mask or a one-hot row picks. Several costs in a row, or a cost per sample, weigh what the model may choose. Of
    two classes, the one-hot row of the wrong one is a cost that looks like a label.
    """
    weights, given = met.batch.detach(), met.predicted.detach()
    if not weights.numel() or bool((weights < 0).any()):
        return False
    wide = weights.shape == given.shape and weights.ndim > 1 and weights.shape[-1] > 2
    if wide and bool(((weights != 0).sum(-1) <= 1).all()):
        return True
    counted = weights[weights != 0].double()
    even = bool((counted == counted[:1]).all())
    if not bool((given > 0).any()):
        return even
    shared = any(bool(((given.sum(axis) - 1).abs() < _ROUNDING).all()) for axis in range(1, given.ndim))
    return even and not shared and flow.is_given(met.batch)


def _of_difference(flow: Flow, loss: torch.Tensor, met: Meeting) -> Pull:
    """Whether the loss grows with the size of a difference, whatever its sign: tried with targets on both sides."""
    spread = float((met.predicted - met.batch).detach().double().abs().mean()) or 1.0
    generator = torch.Generator().manual_seed(0)
    signs = []
    for _ in range(3):
        args = [*flow.tape.entries[met.entry].args]
        if met.argument is None:
            return "unclear"
        aside = torch.rand(met.batch.shape, generator=generator) - 0.5
        aside = (aside + 0.5 * aside.sign()).to(met.predicted)
        args[met.argument] = met.predicted.detach() + 2 * spread * aside
        try:
            replay = flow.tape.replay({}, {met.entry: tuple(args)})
            difference = replay.of(met.result)
            (slope,) = torch.autograd.grad(
                replay.of(loss).sum(), [difference], retain_graph=True, allow_unused=True
            )
        except Exception:  # what follows does not take other values
            return "unclear"
        if slope is not None:
            signs.append((slope * difference.detach()).sign().flatten())
    found = torch.cat(signs) if signs else torch.zeros(0)
    found = found[found != 0]
    if len(found) < 4:
        return "unclear"
    share = float((found > 0).double().mean())
    return "towards" if share > 0.95 else "away" if share < 0.05 else "unclear"


def _sign(slope: torch.Tensor, away_uniform: bool = False) -> Pull:
    """Which way a quantity that grows with the error pulls, by the loss's derivative with respect to it.

    Args:
        slope: the derivative.
        away_uniform: whether only one and the same negative weight counts as ``away``.
    """
    values = slope.detach().double().flatten()
    values = values[values != 0]
    if not len(values):
        return "none"
    if bool((values > 0).all()):
        return "towards"
    if not bool((values < 0).all()):
        return "unclear"
    uniform = float(values.max() - values.min()) <= 1e-3 * float(values.abs().max())
    return "away" if uniform or not away_uniform else "unclear"


def _is_probability(tensor: torch.Tensor) -> bool:
    """Whether values are probabilities or their logarithms, by what made them or by what they add up to."""
    found = producers(tensor, {})
    if found and all(
        one.op in _PROBABILITIES or (one.op == "log" and one.before in _PROBABILITIES) for one in found
    ):
        return True
    if tensor.ndim < 2 or tensor.shape[-1] < 2 or not tensor.is_floating_point():
        return False
    values = tensor.detach().float()
    return bool((values <= 0).all()) and bool((values.logsumexp(-1).abs() < 1e-3).all())


def _slopes(
    flow: Flow, loss: torch.Tensor, results: Sequence[torch.Tensor], edges: Sequence[Any]
) -> list[torch.Tensor | None]:
    """The loss's derivative with respect to each result, in a replay from the predictions on.

    ``None`` where there is none. The model's own graph is left alone.
    """
    slopes: list[torch.Tensor | None] = [None] * len(results)
    given = {
        id(edge): edge.detach().requires_grad_()
        for edge in edges
        if isinstance(edge, torch.Tensor) and edge.is_floating_point() and edge.requires_grad
    }
    try:
        replay = flow.tape.replay(given)
        again = replay.of(loss)
        found = [replay.of(one) for one in results]
        inside = [place for place, one in enumerate(found) if one.grad_fn is not None]
        if not inside or not again.requires_grad or again is loss:
            return slopes
        gradients = torch.autograd.grad(
            again.sum(), [found[place] for place in inside], retain_graph=True, allow_unused=True
        )
    except Exception:  # a replay may fail in any way; then nothing is known
        return slopes
    for place, slope in zip(inside, gradients, strict=True):
        slopes[place] = slope
    return slopes
