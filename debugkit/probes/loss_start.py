"""Where the loss starts, against what an uninformed model would get from the same loss function."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from debugkit.evidence import Cost
from debugkit.loss.losses import LossCall
from debugkit.loss.term import LossTerm
from debugkit.probes.loss_tail import LossTail
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.weights.freshness import State, head_state, is_drawn_by_library, is_untouched

Kind = Literal["classes", "binary", "values"]

_CLASSES = ("cross_entropy", "nll_loss")
_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "multilabel_soft_margin_loss")
_VALUES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_FEWEST = 32
_HIGH = 1.2


@dataclass(frozen=True)
class Start:
    """The first value of one loss call.

    Attributes:
        name: the loss function.
        kind: ``classes``, ``binary`` or ``values``.
        location: the source line that called it.
        first: its value on the first batch.
        error: the standard error of that value as a mean over samples.
        expected: what the same outputs would get on average if labels were drawn at random.
        chance: its value for a uniform guess, or for the best constant in a regression.
        prior: its value for the class frequencies; 0 where these are not known.
        classes: how many classes there are.
        spread: in a regression, the standard deviation of the outputs over that of the targets; ``None`` for too few.
        largest: the largest absolute output.
        features: the size of what the last layer is given.
        gain: the standard deviation of the last layer's weights times the square root of its fan-in.
        bias: the largest absolute bias of the last layer.
        scaled_by: the last function between the last layer and the loss.
        knows_labels: whether labels shaped the outputs behind the last layer, as margin losses do.
        state: whether the last layer is fresh.
        own_scale: whether the last layer is as large as the library that the model comes from makes it.
        untouched: whether the whole model is.
        heads: names of the last layer's parameters.
    """

    name: str
    kind: Kind
    location: str | None
    first: float
    error: float
    expected: float
    chance: float
    prior: float
    classes: int
    spread: float | None
    largest: float
    features: float | None
    gain: float
    bias: float
    scaled_by: str | None
    knows_labels: bool
    state: State
    own_scale: bool
    untouched: bool
    heads: tuple[str, ...]


@dataclass(frozen=True)
class LossStart:
    """The first values of the loss calls whose targets come from the batch.

    Attributes:
        starts: one per call, in order.
    """

    cost: ClassVar[Cost] = "backward"
    starts: tuple[Start, ...]

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, tail: LossTail, step: TrainingStep, samples: Samples | None
    ) -> LossStart:
        """Compare what was recorded; nothing runs again."""
        found = (_start(target.model, term, tail, step, samples) for term in tail.terms if term.from_batch)
        starts = [start for start in found if start is not None]
        for index, start in enumerate(starts):
            if start.first > _HIGH * start.chance and start.heads:
                with sandbox.probe():
                    own = is_drawn_by_library(target.model, start.heads)
                starts[index] = replace(start, own_scale=own)
        return LossStart(tuple(starts))


def _start(
    model: torch.nn.Module, term: LossTerm, tail: LossTail, step: TrainingStep, samples: Samples | None
) -> Start | None:
    kind = _kind(term)
    target = term.given.get("target")
    if kind is None or not isinstance(target, torch.Tensor) or not term.value.isfinite().all():
        return None
    measured = _measure(term, kind)
    if measured is None:
        return None
    first, each, chance = measured
    call = _whole_call(term, step)
    rows = call.input.shape[0] if call is not None and call.input.shape else (tail.rows or 1)
    if call is not None and call.value is not None:
        first = call.value
    given = term.given["input"].float()
    gain, bias = _size(model, term.heads)
    transforms = [op.name for op in term.way.ops if op.trained]
    return Start(
        name=term.name,
        kind=kind,
        location=term.location,
        first=first,
        error=_deviation(term, kind, each) / math.sqrt(max(rows, 1)),
        expected=_expected(term, kind),
        chance=chance,
        prior=_prior(term, samples, target) if kind == "classes" else 0.0,
        classes=given.shape[term.class_dim] if kind == "classes" else 2,
        spread=_spread(given, target) if kind == "values" else None,
        largest=float(given[given.isfinite()].abs().max()) if bool(given.isfinite().any()) else math.inf,
        features=term.features,
        gain=gain,
        bias=bias,
        scaled_by=transforms[-1] if transforms and not term.way.trivial else None,
        knows_labels=term.knows_labels,
        state=head_state(model, term.heads) if term.heads else "unknown",
        own_scale=False,
        untouched=is_untouched(model),
        heads=term.heads,
    )


def _kind(term: LossTerm) -> Kind | None:
    if term.name in _CLASSES:
        return "classes" if term.given["input"].shape[term.class_dim] > 1 else None
    return "binary" if term.name in _BINARY else "values" if term.name in _VALUES else None


def _measure(term: LossTerm, kind: Kind) -> tuple[float, torch.Tensor, float] | None:
    """The call's value, that of each element, and that of an uninformed prediction."""
    shares = _shares(term)
    first = float((term.value.float() * shares).sum())
    try:
        chance = float((term.call(input=_uninformed(term, kind)) * shares).sum())
        each = term.call(reduction="none").detach()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    if not chance > 0 or not math.isfinite(chance):
        return None
    count = _counted(term) if term.given.get("reduction") == "sum" else 1
    return first / count, each.flatten(), chance / count


def _counted(term: LossTerm) -> int:
    """How many elements a sum adds up."""
    target, ignored = term.given["target"], term.given.get("ignore_index")
    if isinstance(ignored, int) and not target.is_floating_point():
        return max(int((target != ignored).sum()), 1)
    return max(int(target.numel()), 1)


def _deviation(term: LossTerm, kind: Kind, each: torch.Tensor) -> float:
    """The standard deviation of one sample's loss, over samples and over the labels that it could have had."""
    given = term.given["input"].float()
    if kind == "classes":
        scores = given.log_softmax(term.class_dim) if term.name == "cross_entropy" else given
        others = scores.clamp_min(-1e4).var(term.class_dim, correction=0).mean()
    elif kind == "binary":
        odds = torch.logit(given, 1e-6) if term.name == "binary_cross_entropy" else given
        others = odds.square().mean() / 4
    else:
        others = torch.zeros(())
    over = each.float().var(correction=0) if each.numel() > 1 else each.float().square().sum()
    return float((others + over).sqrt())


def _expected(term: LossTerm, kind: Kind) -> float:
    """The mean loss over all labels; ``nan`` for values."""
    given = term.given["input"].float()
    if kind == "classes":
        scores = given.log_softmax(term.class_dim) if term.name == "cross_entropy" else given
        return -float(scores.clamp_min(-1e4).mean())
    if kind == "binary":
        odds = torch.logit(given, 1e-6) if term.name == "binary_cross_entropy" else given
        return float((F.softplus(odds) + F.softplus(-odds)).mean()) / 2
    return math.nan


def _shares(term: LossTerm) -> torch.Tensor:
    """How much each element of an unreduced loss counts; they sum to 1."""
    if term.value.numel() == 1 or term.weights is None or not bool(term.weights.any()):
        return torch.full_like(term.value.float(), 1 / max(term.value.numel(), 1))
    weights = term.weights.detach().float().abs()
    return (weights / weights.sum()).reshape(term.value.shape)


def _uninformed(term: LossTerm, kind: Kind) -> torch.Tensor:
    given = term.given["input"]
    given = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
    if kind == "values":
        return term.centre().to(given.dtype).expand_as(given)
    if term.name == "nll_loss":
        return torch.full_like(given, -math.log(given.shape[term.class_dim]))
    return torch.full_like(given, 0.5 if term.name == "binary_cross_entropy" else 0.0)


def _whole_call(term: LossTerm, step: TrainingStep) -> LossCall | None:
    """The same call on the whole batch, where its value is a mean and one call has its name and line."""
    found = [call for call in step.loss_calls if (call.name, call.location) == (term.name, term.location)]
    same = len(found) == 1 and found[0].connected and found[0].value is not None
    return found[0] if same and found[0].reduction == "mean" and term.given.get("weight") is None else None


def _prior(term: LossTerm, samples: Samples | None, target: torch.Tensor) -> float:
    """The entropy of the class frequencies; 0 where too few labels were seen."""
    counts: Mapping[int, int] = (samples.labels.counts or {}) if samples is not None else {}
    if target.is_floating_point():
        return 0.0
    if sum(counts.values()) < _FEWEST or max(counts) >= term.given["input"].shape[term.class_dim]:
        ignored = term.given.get("ignore_index")
        counts = Counter(value for value in target.flatten().tolist() if value != ignored)
    total = sum(counts.values())
    if total < _FEWEST or term.given.get("weight") is not None or len(counts) < 2:
        return 0.0
    return -sum(count / total * math.log(count / total) for count in counts.values() if count)


def _spread(given: torch.Tensor, target: torch.Tensor) -> float | None:
    """How wide outputs spread over the samples, in standard deviations of the targets."""
    if given.shape != target.shape or given.ndim < 1 or len(given) < 4:
        return None
    targets = float(target.float().var(0, correction=0).mean())
    return math.sqrt(float(given.var(0, correction=0).mean()) / targets) if targets > 0 else None


def _size(model: torch.nn.Module, names: Sequence[str]) -> tuple[float, float]:
    """The largest gain and the largest bias among parameters."""
    gain = bias = 0.0
    for name in names:
        values: Any = model.get_parameter(name).detach()
        if not values.is_floating_point() or not values.numel():
            continue
        if values.ndim >= 2:
            fan_in = values[0].numel()
            gain = max(gain, float(values.float().std(correction=0)) * math.sqrt(fan_in))
        elif values.numel():
            bias = max(bias, float(values.float().abs().max()))
    return gain, bias
