"""Outputs of known worth: perfect by the user's own loss, perfect for other samples, the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F

from debugkit.errors import Unavailable
from debugkit.loss.objective import is_class_loss

Answer = Literal["classes", "binary", "values"]

GAPS = (20.0, 4.0, 1.0)
"""How far the right answer is ahead, in logits: from certain to hesitant."""

_BINARY = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
_MOST_CONSTANTS = 6
_HALVES = 4
_VIEWS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda out: out,
    lambda out: out.movedim(-1, 1),
    lambda out: out[:, :-1],
    lambda out: out[:, 1:],
)


class KnownAnswers:
    """Outputs like a model's, whose worth is known from the loss call that took them.

    Args:
        output: the model's main output.
        func: the main loss function.
        given: its arguments by name.

    Attributes:
        kind: whether the answers are classes, yes or no, or values.
        scores: whether the output holds unbounded scores, and not probabilities.
        classes: the dimension of the classes in the output, for classes.
        ignored: the target that does not count, for classes.

    Raises:
        Unavailable: the loss takes something else than the output, or its targets are no answers to give.
    """

    def __init__(self, output: torch.Tensor, func: Callable[..., Any], given: Mapping[str, Any]) -> None:
        prediction, target = given["input"].detach(), given["target"].detach()
        self._output, self._func = output.detach(), func
        self._places, changed = _places(self._output, func, prediction)
        self._shape, self._dtype = prediction.shape, output.dtype
        self.ignored = int(given.get("ignore_index", -100))
        self.kind: Answer = "values"
        if func in _BINARY:
            self.kind = "binary"
            if not bool(((target == 0) | (target == 1)).all()):
                raise Unavailable("the targets of the loss are no plain answers of yes or no")
        elif is_class_loss(func):
            self.kind = "classes"
            if target.is_floating_point():
                if not bool(((target == 0) | (target == 1)).all()):
                    raise Unavailable("the targets of the loss are mixtures of classes")
                target = target.argmax(1 if prediction.ndim > 1 else 0)
        elif target.numel() != prediction.numel():
            raise Unavailable("the loss broadcasts its targets; see `loss-shape`")
        self.scores = changed or func in (F.cross_entropy, F.binary_cross_entropy_with_logits)
        self._target: torch.Tensor = target.reshape(prediction.shape) if self.kind != "classes" else target
        self._counted = self._target != self.ignored if self.kind == "classes" else None
        if len(torch.unique(self._answers())) < 2:
            raise Unavailable(
                "all targets are the same, so nothing can tell a good prediction from a constant one"
            )
        self.classes = self._class_dim() if self.kind == "classes" else None

    def perfect(self, gap: float) -> torch.Tensor:
        """What the loss calls right."""
        return self._filled(self._encoded(self._target, gap))

    def dealt_wrongly(self, gap: float) -> Iterator[torch.Tensor]:
        """The same answers, given to other samples: nearly all wrong first, then at random, then half of them right."""
        generator = torch.Generator().manual_seed(0)
        count = len(self._answers()) if self.kind == "classes" else self._shape[0]
        orders = [self._most_wrong(count), *(torch.randperm(count, generator=generator) for _ in range(3))]
        for _ in range(_HALVES):
            half = torch.randperm(count, generator=generator)[: count // 2]
            order = torch.arange(count)
            order[half] = half.roll(1)
            orders.append(order)
        for order in orders:
            dealt = self._reordered(order.to(self._target.device))
            if not torch.equal(dealt, self._target):
                yield self._filled(self._encoded(dealt, gap))

    def constant(self) -> Iterator[torch.Tensor]:
        """One answer for all samples: the likelihoods of all answers, or each of the commonest."""
        target = self._target
        if self.kind == "values":
            for value in (target.mean(0, keepdim=True), target.median(0, keepdim=True).values):
                yield self._filled(value.expand(self._shape))
            yield self._filled(torch.zeros_like(target))
            return
        if self.kind == "binary":
            share = target.float().mean(0, keepdim=True).clamp(1e-3, 1 - 1e-3)
            for logit in (share.logit(), torch.full_like(share, 10.0), torch.full_like(share, -10.0)):
                yield self._filled(self._as_output(logit.expand(self._shape)))
            return
        found, counts = torch.unique(self._answers(), return_counts=True)
        prior = torch.full((self._shape[1],), 1e-6, device=target.device)
        prior[found] = counts.float() / counts.sum()
        spread = prior.log().reshape(1, -1, *[1] * (len(self._shape) - 2))
        yield self._filled(self._as_output(spread.expand(self._shape)))
        for label in found[counts.argsort(descending=True)][:_MOST_CONSTANTS]:
            yield self._filled(self._encoded(torch.full_like(target, int(label)), GAPS[0]))

    def leaning(self, logit: float) -> torch.Tensor:
        """A certain no where the answer is no, and this logit where it is yes."""
        return self._filled(self._as_output(torch.where(self._target > 0.5, logit, -10.0)))

    def beside(self, labels: torch.Tensor, ahead: int) -> torch.Tensor | None:
        """At each position the label so many positions ahead; ``None`` where outputs have no such positions."""
        shape = self._output.shape
        if self.classes != len(shape) - 1 or labels.ndim < 2 or shape[:-1] != labels.shape:
            return None
        moved = labels.roll(-ahead, 1)
        chosen = F.one_hot(moved.clamp(0, shape[-1] - 1).long(), shape[-1])
        return (chosen * GAPS[0]).to(self._dtype)

    def decided(self, output: torch.Tensor) -> torch.Tensor:
        """The answers that an output stands for."""
        if self.classes is not None:
            return output.argmax(self.classes)
        return (output > (0.0 if self.scores else 0.5)).long()

    def _answers(self) -> torch.Tensor:
        return self._target[self._counted] if self._counted is not None else self._target

    def _encoded(self, target: torch.Tensor, gap: float) -> torch.Tensor:
        """Answers in the form of the loss's input."""
        if self.kind == "values":
            return target
        if self.kind == "binary":
            return self._as_output((target.float() * 2 - 1) * gap / 2)
        width = self._shape[1]
        chosen = F.one_hot(target.clamp(0, width - 1).long(), width).movedim(-1, 1)
        return self._as_output(chosen.float() * gap)

    def _as_output(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as what the output holds: themselves, log-probabilities or probabilities."""
        if self.scores:
            return logits
        return logits.log_softmax(1) if self.kind == "classes" else logits.sigmoid()

    def _filled(self, prediction: torch.Tensor) -> torch.Tensor:
        flat = self._output.flatten().clone()
        flat[self._places] = prediction.reshape(-1).to(self._dtype)
        return flat.reshape(self._output.shape)

    def _most_wrong(self, count: int) -> torch.Tensor:
        """An order in which as few as possible get back what they had."""
        answers = self._answers().reshape(count, -1)
        keys = answers.float() @ torch.arange(1, answers.shape[1] + 1, device=answers.device).float()
        order = keys.argsort(stable=True)
        most = count // 2 if self.kind == "values" else int(torch.unique(keys, return_counts=True)[1].max())
        shifted = torch.empty_like(order)
        shifted[order] = order.roll(max(1, min(most, count // 2)))
        return shifted.cpu()

    def _reordered(self, order: torch.Tensor) -> torch.Tensor:
        if self._counted is None:
            return self._target[order]
        target = self._target.clone()
        target[self._counted] = self._answers()[order]
        return target

    def _class_dim(self) -> int:
        """The dimension along which the places of one prediction's classes lie in the output."""
        places = self._places.reshape(self._shape)
        dim = 1 if len(self._shape) > 1 else 0
        if self._shape[dim] < 2:
            raise Unavailable("the loss chooses among one class")
        step = int((places.select(dim, 1) - places.select(dim, 0)).flatten()[0])
        shape = self._output.shape
        found = [d for d in range(len(shape)) if _stride(shape, d) == step and shape[d] == self._shape[dim]]
        if not found:
            raise Unavailable("the dimension of the classes is not known")
        return found[0]


def _stride(shape: torch.Size, dim: int) -> int:
    stride = 1
    for length in shape[dim + 1 :]:
        stride *= length
    return stride


def _places(
    output: torch.Tensor, func: Callable[..., Any], prediction: torch.Tensor
) -> tuple[torch.Tensor, bool]:
    """For each value that the loss got, its place in the output; and whether the loss got a function of it."""
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda values: values]
    if func is F.nll_loss and prediction.ndim > 1:
        changes.append(lambda values: values.log_softmax(1))
    if func is F.binary_cross_entropy:
        changes.append(lambda values: values.sigmoid())
    numbers = torch.arange(output.numel(), device=output.device).reshape(output.shape)
    views = [view for view in _VIEWS if output.ndim >= 2] or [_VIEWS[0]]
    fitting = [view for view in views if view(output).numel() == prediction.numel()]
    fitting.sort(key=lambda view: view(output).shape != prediction.shape)
    for number, change in enumerate(changes):
        for view in fitting:
            values = change(view(output).float().reshape(prediction.shape))
            if torch.allclose(values, prediction.float(), rtol=1e-2, atol=1e-4, equal_nan=True):
                return view(numbers).reshape(-1), number > 0
    raise Unavailable("the loss takes something else than the model's main output")
