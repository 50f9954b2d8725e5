"""Gradients that are accumulated over micro-batches, against the gradient of all their samples at once."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from debugkit.data.batch import size, sliceable, split, take
from debugkit.data.labels import IGNORED, as_tensor
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.term import LossTerm
from debugkit.probes.batches import Batches
from debugkit.probes.loss_tail import step_tail
from debugkit.probes.training_step import TrainingStep, backward, run_step
from debugkit.sandbox import Sandbox, own_steps
from debugkit.target import Target
from debugkit.tracing.dropout import NoDropout
from debugkit.trials.schedule import unwrap

Mean = Literal["targets", "samples", "nothing", "unknown"]

_MOST_ROWS = 8
_MOST_BATCHES = 4
_MOST_VALUES = 2**20
_EVEN = 0.01
_NEAR = 0.03
_APART = 0.08
_FEWEST_DIGITS = 1e-3


@dataclass(frozen=True)
class AccumulatedGradients:
    """What accumulating a few micro-batches makes of their gradients.

    Attributes:
        steps: micro-batches per optimizer step.
        counts: how many targets count in each of the first micro-batches.
        mean: what the loss of a batch is a mean over, learned from the loss of two parts and of both together;
            ``nothing`` for a sum, in which every target weighs the same.
        scale: the weight of one micro-batch's loss in what is backpropagated, times ``steps``; ``None`` where the loop
            does the scaling and can't be seen.
        rescaled: whether the optimizer's updates stay the same when all gradients are larger by a factor.
        shared: whether every micro-batch is divided by the targets of all of them.
        error: the expected distance between the accumulated gradient and that of all samples at once, relative to
            the latter; 0 where the micro-batches count as they should, ``None`` where it was not measured.
    """

    cost: ClassVar[Cost] = "backward"
    steps: int
    counts: tuple[int, ...]
    mean: Mean
    scale: float | None
    rescaled: bool
    shared: bool
    error: float | None

    @property
    def variation(self) -> float:
        """The standard deviation of the counts over their mean."""
        return statistics.pstdev(self.counts) / statistics.fmean(self.counts)

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep
    ) -> AccumulatedGradients:
        """Count, and run parts of the first batches where the counts differ.

        Raises:
            Unavailable: every batch is an optimizer step, or its targets can't be counted.
            Broken: the user's step raised.
        """
        steps = target.accumulation_steps
        if steps == 1:
            raise Unavailable("`accumulation_steps` is 1: every batch is an optimizer step of its own")
        if not step.has_graph or step.own_backward:
            raise Unavailable("the step runs its own backward, so that its micro-batches can't be told apart")
        ignored = {call.ignore_index for call in step.loss_calls if call.connected} - {None} or {IGNORED}
        items = _without_rest(batches.items)
        counts = [_counted(batch, ignored) for batch in items]
        if any(count is None for count in counts) or not any(counts):
            raise Unavailable("the batches have no labels whose number could be counted")
        with sandbox.probe(), NoDropout():
            if not sandbox.training[""]:
                target.model.train()
            scale, shared = _scaling(target, batches.first, steps)
        rescaled = _rescales(target.optimizer)
        known = (steps, tuple(int(count or 0) for count in counts))
        even = max(known[1]) <= (1 + _EVEN) * min(known[1])
        if shared or even or len(known[1]) < 2:
            return AccumulatedGradients(
                *known, "unknown", scale, rescaled, shared, 0.0 if shared or even else None
            )
        mean = _mean_over(target, sandbox, _most_uneven(items, ignored), ignored)
        if mean == "unknown":
            mean = _by_weights(target, sandbox, items, known[1])
        if mean != "targets":
            error = None if mean == "unknown" else 0.0
            return AccumulatedGradients(*known, mean, scale, rescaled, shared, error)
        error = _error(target, sandbox, items[:_MOST_BATCHES], known[1], steps)
        return AccumulatedGradients(*known, mean, scale, rescaled, shared, error)


def _without_rest(items: Sequence[Any]) -> Sequence[Any]:
    """The batches without a last one that holds what was left over."""
    sizes = [size(batch) or 0 for batch in items]
    return items[:-1] if len(sizes) > 1 and sizes[-1] < min(sizes[:-1]) else items


def _row_counts(batch: Any, ignored: set[Any], shift: int = 0) -> torch.Tensor | None:
    """How many targets count in each sample, without the first ``shift`` of a sequence; one for a single target."""
    labels = as_tensor(split(batch)[1])
    if labels is None or not labels.ndim or not len(labels):
        return None
    counted = torch.ones_like(labels, dtype=torch.bool)
    if not labels.is_floating_point():
        for value in ignored:
            counted &= labels != value
    return (counted[:, shift:] if labels.ndim > 1 else counted).reshape(len(labels), -1).sum(1)


def _counted(batch: Any, ignored: set[Any]) -> int | None:
    rows = _row_counts(batch, ignored)
    return None if rows is None else int(rows.sum())


def _scaling(target: Target, batch: Any, steps: int) -> tuple[float | None, bool]:
    """How a training step that knows the whole window scales a batch.

    Returns:
        The weight of a micro-batch times the number of them, and whether it follows the targets in the window.
    """
    in_window = getattr(target.training_step, "in_window", None)
    if in_window is None:
        return None, False
    part = _rows(batch)
    alone = float(run_step(target, part).loss.detach())
    same = float(in_window(target.model, part, [part] * steps).detach())
    among_longer = float(in_window(target.model, part, [part, *[batch] * (steps - 1)]).detach())
    return (steps * same / alone if alone else None), not math.isclose(among_longer, same, rel_tol=1e-3)


def _rescales(optimizer: Any) -> bool:
    """Whether an optimizer of the same kind moves a parameter as far for a gradient four times as large."""
    if optimizer is None:
        return False
    moves, kind = [], type(unwrap(optimizer))
    taken = inspect.signature(kind).parameters
    settings = {name: value for name, value in unwrap(optimizer).defaults.items() if name in taken}
    for factor in (1.0, 4.0):
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        try:
            twin = kind([parameter], **settings)
            parameter.grad = factor * torch.tensor([[1.0, -2.0], [3.0, -4.0]])
            with own_steps():
                twin.step()
        except Exception:  # a foreign optimizer may refuse in any way
            return False
        moves.append(parameter.detach())
    return bool(moves[0].any()) and torch.allclose(moves[0], moves[1], rtol=1e-3, atol=0.0)


def _rows(batch: Any, most: int = _MOST_ROWS) -> Any:
    count = size(batch) or 1
    return take(batch, range(min(most, max(1, count // 2)))) if sliceable(batch) and count > 1 else batch


def _most_uneven(items: Sequence[Any], ignored: set[Any]) -> Any:
    """The batch whose samples differ most in how many targets they have."""

    def spread(batch: Any) -> float:
        counts = _row_counts(batch, ignored)
        return float(counts.double().std(correction=0)) if counts is not None else 0.0

    return max(items, key=spread)


def _mean_over(target: Target, sandbox: Sandbox, batch: Any, ignored: set[Any]) -> Mean:
    """What the loss is a mean over: the weights of two parts in the loss of both."""
    counts, shifted = _row_counts(batch, ignored), _row_counts(batch, ignored, shift=1)
    if counts is None or not sliceable(batch) or len(counts) != size(batch) or len(counts) < 2:
        return "unknown"
    order = counts.argsort().tolist()
    half = max(1, min(_MOST_ROWS, len(order) // 2) // 2)
    few, many = order[:half], order[-half:]
    shares = [
        float(each[few].sum() / each[few + many].sum())
        for each in (counts, shifted)
        if each is not None and bool(each[few + many].any())
    ]
    if any(abs(share - 0.5) < _APART for share in shares):
        return "unknown"
    try:
        first, second, both = (_loss(target, sandbox, take(batch, rows)) for rows in (few, many, few + many))
    except Broken:
        return "unknown"
    if math.isclose(first + second, both, rel_tol=1e-3):
        return "nothing"
    if abs(first - second) < _FEWEST_DIGITS * abs(both):
        return "unknown"
    weight = (both - second) / (first - second)
    if any(abs(weight - share) < _NEAR for share in shares):
        return "targets"
    return "samples" if abs(weight - 0.5) < _NEAR else "unknown"


def _loss(target: Target, sandbox: Sandbox, batch: Any) -> float:
    with sandbox.probe(), NoDropout():
        if not sandbox.training[""]:
            target.model.train()
        return float(run_step(target, batch).loss.detach())


def _by_weights(target: Target, sandbox: Sandbox, items: Sequence[Any], counts: Sequence[int]) -> Mean:
    """The same from the weight of one target in the loss of two micro-batches of different size."""
    ends = [counts.index(min(counts)), counts.index(max(counts))]
    weights, numbers = [], []
    for end in ends:
        found = [weight_of_target(term) for term in step_tail(target, sandbox, items[end]).terms]
        if len(found) != 1 or found[0] is None:
            return "unknown"
        weights.append(found[0][0])
        numbers.append(found[0][1])
    if math.isclose(weights[0], weights[1], rel_tol=_NEAR):
        return "nothing"
    same = math.isclose(weights[0] * numbers[0], weights[1] * numbers[1], rel_tol=_NEAR)
    return "targets" if same else "unknown"


def weight_of_target(term: LossTerm) -> tuple[float, int] | None:
    """The weight of one target in the loss, and how many targets count; ``None`` where they weigh differently."""
    targets, weights = term.given.get("target"), term.weights
    if not isinstance(targets, torch.Tensor) or weights is None:
        return None
    ignored = term.given.get("ignore_index")
    number = int((targets != ignored).sum()) if isinstance(ignored, int) else targets.numel()
    if term.given.get("reduction") == "none" or weights.numel() > 1:
        counted = weights[weights != 0]
        even = counted.numel() and float(counted.max() - counted.min()) <= 1e-3 * float(counted.abs().max())
        return (float(counted.mean()), counted.numel()) if even else None
    if not number or term.given.get("weight") is not None:
        return None
    return float(weights) / (number if term.given.get("reduction") == "mean" else 1), number


def _error(
    target: Target, sandbox: Sandbox, items: Sequence[Any], counts: Sequence[int], steps: int
) -> float | None:
    """The expected relative error of the accumulated gradient.

    The gradients of a few samples of each micro-batch give the size of the true gradient and of its noise. The true
    gradient is the same under either weighting; the noise of the micro-batches is weighted differently.
    """
    rows = max(1, min(_MOST_ROWS, size(items[0]) or 1) // len(items))
    if (size(items[0]) or 1) < len(items):
        items = items[:2]
    gradients = []
    for batch in items:
        part = take(batch, range(min(rows, size(batch) or 1))) if sliceable(batch) else batch
        with sandbox.probe(), NoDropout():
            if not sandbox.training[""]:
                target.model.train()
            backward(run_step(target, part).loss)
            gradients.append(_sampled(target.model))
    stacked = torch.stack(gradients)
    if not bool(stacked.isfinite().all()):
        return None
    products = stacked @ stacked.T
    count = len(stacked)
    signal = max(0.0, float((products.sum() - products.trace()) / (count * (count - 1))))
    noise = max(0.0, float(products.trace() / count) - signal) * rows / max(size(items[0]) or rows, rows)
    variation = statistics.pvariance(counts) / statistics.fmean(counts) ** 2
    whole = signal + noise * (1 + variation) / steps
    return math.sqrt(noise * variation / steps / whole) if whole else 0.0


def _sampled(model: torch.nn.Module) -> torch.Tensor:
    """Evenly spaced values of all gradients."""
    found = [
        p.grad.detach().flatten() for p in model.parameters() if p.grad is not None and not p.grad.is_sparse
    ]
    step = -(-sum(grad.numel() for grad in found) // _MOST_VALUES) or 1
    return torch.cat([grad[::step].double().cpu() for grad in found])
