"""What a loss asks of a model, and how far a model has come: errors, constant predictions, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.loss.losses import LOSSES, bind_loss
from debugkit.tracing.dropout import DROPOUTS
from debugkit.tracing.graph import ancestors
from debugkit.tracing.source import user_location

Kind = Literal["classes", "values", "unknown"]

_CLASSES = (F.cross_entropy, F.nll_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
_LOG_SOFTMAX = (F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax)
_VALUES = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


@dataclass(frozen=True)
class Score:
    """How well one pass did.

    Attributes:
        kind: what the main loss call predicts; ``unknown`` when torch's losses are not used.
        loss: the whole loss.
        value: the main loss call's own value; the whole loss when unknown.
        errors: wrong predictions, for classes.
        counted: predictions that count.
        constant_value: the value that the best constant prediction would get; ``nan`` when unknown.
        constant_errors: the errors of the best constant prediction.
    """

    kind: Kind
    loss: float
    value: float
    errors: int
    counted: int
    constant_value: float
    constant_errors: int

    @staticmethod
    def total(scores: Sequence[Score]) -> Score:
        """The score over several parts of a batch."""
        count = len(scores)
        return Score(
            scores[0].kind,
            sum(s.loss for s in scores) / count,
            sum(s.value for s in scores) / count,
            sum(s.errors for s in scores),
            sum(s.counted for s in scores),
            sum(s.constant_value for s in scores) / count,
            sum(s.constant_errors for s in scores),
        )

    def progress(self, first: Score, unavoidable: int = 0) -> float:
        """0 for the best constant prediction (or the start, where it is better), 1 for a perfect one.

        Args:
            first: the score before training.
            unavoidable: errors that no model can avoid.
        """
        return max(self.by_value(first), self.by_errors(unavoidable))

    def gained(self, first: Score) -> float:
        """Progress of the loss beyond a constant prediction; the share it has fallen by where that is unknown."""
        gained = self.by_value(first)
        return gained if math.isfinite(gained) else self.fallen(first)

    def fallen(self, first: Score) -> float:
        """The share of its first value that the loss has fallen by."""
        return (first.value - self.value) / abs(first.value) if first.value else 0.0

    def by_value(self, first: Score) -> float:
        """Progress of the loss itself; minus infinity where nothing is known of its scale.

        Below the best constant prediction it runs from -1 (the start) to 0, so that targets far from 0 count.
        """
        if self.kind == "unknown":
            return self.fallen(first)
        reference = min(first.value, self.constant_value)
        if not reference > 0:
            return float("-inf")
        if self.value > reference and first.value > reference:
            return (reference - self.value) / (first.value - reference)
        return 1 - self.value / reference

    def by_errors(self, unavoidable: int = 0) -> float:
        """Progress of the predictions; minus infinity where they are no classes."""
        if self.kind != "classes":
            return float("-inf")
        room = self.constant_errors - unavoidable
        wrong = max(0, self.errors - unavoidable)
        return 1 - wrong / room if room > 0 else float(wrong == 0)


class Watch(TorchFunctionMode):
    """Watches the loss calls of one pass and switches dropout off, from outside.

    Args:
        main: index of the main loss call, when it is known from an earlier pass.

    Attributes:
        main: index of the main loss call; -1 where there is none.
        candidates: how many loss calls could be the main one, on the pass that looked for it.
    """

    def __init__(self, main: int | None = None) -> None:
        super().__init__()
        self.main = main
        self.candidates = 0
        self._first = main is None
        self._calls: list[tuple[Callable[..., Any], dict[str, Any], Any]] = []
        self._places: list[str | None] = []
        self._log_probabilities: list[tuple[torch.Tensor, int, str | None]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.backward and len(args) == 1 and not any(map(_is_given, kwargs.values())):
            return self._backward(args[0])
        if func in DROPOUTS and args:
            return args[0]
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            kwargs["dropout_p"] = 0.0
        elif func is F.multi_head_attention_forward:
            kwargs["training"] = False
        result = func(*args, **kwargs)
        if func in LOSSES and isinstance(result, torch.Tensor):
            self._calls.append((func, bind_loss(func, args, kwargs), result))
            self._places.append(user_location(outer=True) if self._first else None)
        elif self._first and func in _LOG_SOFTMAX and result.requires_grad:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int):
                result.retain_grad()
                self._log_probabilities.append((result, dim, user_location(outer=True)))
        return result

    def _backward(self, loss: torch.Tensor) -> None:
        """Backpropagate with the mode on: activation checkpointing runs forward again, and dropout must be off.

        Only a plain ``loss.backward()`` comes here; one with a gradient belongs to a custom backward.
        """
        run: Callable[..., Any] = torch.autograd.Variable._execution_engine.run_backward
        with self:
            run(
                (loss,),
                (torch.ones_like(loss),),
                False,
                False,
                (),
                allow_unreachable=True,
                accumulate_grad=True,
            )

    def score(self, loss: torch.Tensor) -> Score:
        """The score of the pass that ended in ``loss``; finds the main loss call where it is not known."""
        whole = float(loss.detach().float().mean())
        if self.main is None:
            self.main = self._find_main(loss)
        if not 0 <= self.main < len(self._calls):
            return Score("unknown", whole, whole, 0, 0, float("nan"), 0)
        func, given, result = self._calls[self.main]
        value = float(result.detach().float().mean())
        with torch.no_grad():
            if func in _CLASSES:
                errors, counted, constant_errors, entropy = _count(func, given)
                return Score("classes", whole, value, errors, counted, entropy, constant_errors)
            return Score("values", whole, value, 0, given["target"].numel(), _constant(func, given), 0)

    @property
    def main_arguments(self) -> tuple[Callable[..., Any], dict[str, Any]] | None:
        """The main loss function and its arguments by name; ``None`` where none of torch's losses is used."""
        if self.main is None or not 0 <= self.main < len(self._calls):
            return None
        func, given, _ = self._calls[self.main]
        return func, given

    @property
    def main_call(self) -> tuple[str, str | None] | None:
        """Name and source line of the main loss call, or of the only log-softmax, on the pass that looked for it."""
        if self.main is None or not 0 <= self.main < len(self._calls):
            return (
                ("log_softmax", self._log_probabilities[0][2]) if len(self._log_probabilities) == 1 else None
            )
        return self._calls[self.main][0].__name__, self._places[self.main]

    def lowers_likelihood(self, loss: float, labels: Any) -> bool:
        """Whether the loss, once backpropagated, is a log-likelihood of the labels that lacks its minus.

        Such a loss is the sum of the labels' log-probabilities times its gradients with respect to them, and
        none of these is negative.

        Args:
            loss: the value that was backpropagated.
            labels: class indices, in the order of the predictions.
        """
        if len(self._log_probabilities) != 1 or not isinstance(labels, torch.Tensor):
            return False
        ((scores, dim, _),) = self._log_probabilities
        if scores.grad is None or labels.is_floating_point() or bool((scores.grad < 0).any()):
            return False
        weights, chosen = scores.grad.max(dim)
        counted = weights.reshape(-1) > 0
        if labels.numel() != counted.numel() or not counted.any():
            return False
        if not torch.equal(chosen.reshape(-1)[counted], labels.to(chosen.device).reshape(-1)[counted].long()):
            return False
        linear = float((weights * scores.detach().gather(dim, chosen.unsqueeze(dim)).squeeze(dim)).sum())
        return math.isclose(loss, linear, rel_tol=1e-2)

    def rows(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Predictions ``[positions, classes]`` and class indices ``[positions]`` of the main loss call."""
        if self.main is None or not 0 <= self.main < len(self._calls):
            return None
        func, given, _ = self._calls[self.main]
        prediction, target = given["input"].detach(), given["target"].detach()
        if func not in (F.cross_entropy, F.nll_loss) or prediction.ndim < 2 or target.is_floating_point():
            return None
        return prediction.movedim(1, -1).reshape(-1, prediction.shape[1]), target.reshape(-1)

    def _find_main(self, loss: torch.Tensor) -> int:
        if loss.grad_fn is None:
            return -1
        nodes = set(ancestors([loss.grad_fn]))
        judged = [
            (func in _CLASSES, given["target"].numel(), -index, index)
            for index, (func, given, result) in enumerate(self._calls)
            if func in (*_CLASSES, *_VALUES)
            and result.grad_fn in nodes
            and isinstance(given["target"], torch.Tensor)
            and not _is_reweighed(given, result, loss)
        ]
        self.candidates = len(judged)
        return max(judged)[-1] if judged else -1


def _is_reweighed(given: Mapping[str, Any], result: torch.Tensor, loss: torch.Tensor) -> bool:
    """Whether the step makes something else than a mean of a loss that it takes value by value, such as a masked one."""
    if given.get("reduction") != "none":
        return False
    plain, whole = float(result.detach().float().mean()), float(loss.detach().float().mean())
    return not math.isclose(plain, whole, rel_tol=1e-3)


def is_class_loss(func: Callable[..., Any]) -> bool:
    """Whether a main loss function takes classes, and not values."""
    return func in _CLASSES


def _is_given(value: Any) -> bool:
    return value is not None and value is not False


def _count(func: Callable[..., Any], given: Mapping[str, Any]) -> tuple[int, int, int, float]:
    """``(errors, counted, errors of the best constant, loss of the best constant)``."""
    prediction, target = given["input"].detach().float(), given["target"].detach()
    weighted = given.get("weight") is not None or given.get("pos_weight") is not None
    if func in (F.binary_cross_entropy, F.binary_cross_entropy_with_logits):
        bar = 0.5 if func is F.binary_cross_entropy else 0.0
        truth = (target > 0.5).reshape(target.shape[0], -1)
        wrong = int(((prediction > bar).reshape(truth.shape) != truth).sum())
        share = truth.float().mean(0)
        constant = int((torch.minimum(share, 1 - share) * len(truth)).round().sum())
        entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).mean()
        return wrong, truth.numel(), constant, float("nan") if weighted else float(entropy)
    dim = 1 if prediction.ndim > 1 else 0
    guess = prediction.argmax(dim).reshape(-1)
    truth = (
        target.argmax(dim) if target.shape == prediction.shape and target.is_floating_point() else target
    ).reshape(-1)
    kept = truth != given.get("ignore_index", -100)
    guess, truth = guess[kept], truth[kept].long()
    if not len(truth):
        return 0, 0, 0, float("nan")
    counts = torch.bincount(truth.clamp_min(0)).float()
    share = counts / counts.sum()
    entropy = -torch.xlogy(share, share).sum()
    summed = given.get("reduction") == "sum"
    value = float(entropy) * (len(truth) if summed else 1)
    return (
        int((guess != truth).sum()),
        len(truth),
        len(truth) - int(counts.max()),
        float("nan") if weighted else value,
    )


def _constant(func: Callable[..., Any], given: Mapping[str, Any]) -> float:
    """The loss of predicting each output's mean (for L1: median) over the batch."""
    target = given["target"].detach().float()
    centre = target.median(0, keepdim=True).values if func is F.l1_loss else target.mean(0, keepdim=True)
    rest = {
        name: value
        for name, value in given.items()
        if name not in ("input", "target", "size_average", "reduce")
    }
    return float(func(centre.expand_as(target), target, **rest).float().mean())
