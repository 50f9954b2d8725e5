"""A trial without inputs: can the labels of some samples be learned when all have the inputs of one?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from debugkit.data.controls import Parts
from debugkit.errors import Unavailable
from debugkit.loss.objective import Score, Watch, is_class_loss
from debugkit.probes.training_step import backward, run_step
from debugkit.sandbox import Sandbox, own_steps
from debugkit.state.randomness import seed_everything
from debugkit.target import Target

Way = Literal["labels", "earlier labels", "place", "noise"]

_LOOK_AT = 8
_ENOUGH = 3
_BEATEN = 0.25
_LEAST_ERRORS = 2
_ROUNDING = {torch.float16: 2e-2, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class BlindRun:
    """A short run in which every row has the inputs of the first, and keeps its own label.

    Attributes:
        steps: optimizer steps taken.
        same: whether all rows got the same predictions in the end, so that nothing tells them apart.
        way: what told the rows apart: their ``labels``, ``earlier labels`` of the same row (as a decoder is given),
            their ``place`` in the batch, or ``noise``.
        learned: whether the labels were learned beyond what one answer for all rows can reach.
        last: the score at the end.
        floor: the errors (the loss, for values) of the best answer that is the same for all rows.
        reads_inputs: whether the predictions change with the inputs as well.
        answers: targets per row.
    """

    steps: int
    same: bool
    way: Way | None
    learned: bool
    last: Score
    floor: float
    reads_inputs: bool
    answers: int


class BlindTrial:
    """The samples without their inputs, and the model that is to learn them.

    Args:
        target: what is trained.
        sandbox: puts everything back.
        parts: the samples, as batches; one step goes through all of them.
        parameters: the model's trainable parameters.
    """

    def __init__(
        self,
        target: Target,
        sandbox: Sandbox,
        parts: Sequence[Parts],
        parameters: Sequence[torch.nn.Parameter],
    ) -> None:
        self._target, self._sandbox = target, sandbox
        self._parts, self._parameters = parts, parameters
        self._blind = [part.blind() for part in parts]
        self._main: int | None = None

    def run(self, rate: float, steps: int, end: float) -> BlindRun:
        """Train with AdamW until it is certain that nothing tells the rows apart, or that the labels are learned.

        Noise is drawn anew in every step, so that it can't be learned in the place of the inputs.

        Raises:
            Unavailable: the targets of the loss are not the batch's labels, or no torch loss takes them.
            Broken: the user's step raised.
        """
        with self._sandbox.probe():
            if not self._sandbox.training[""]:
                self._target.model.train()
            self._compare_targets()
            floor = sum(self._passed(batch, part.rows).floor() for batch, part in self._pairs())
            if not floor or (floor < _LEAST_ERRORS and self._passed(*self._first).score.kind == "classes"):
                raise Unavailable("one answer is right for nearly all of the samples")
            adam = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.0)
            way: Way | None = None
            beaten, index = 0, 0
            for index in range(steps + 1):
                passes = [self._learn(batch, part.rows, index) for batch, part in self._pairs()]
                same = all(one.same_rows() for one in passes)
                beaten = beaten + 1 if sum(one.missed() for one in passes) < _BEATEN * floor else 0
                if index == _LOOK_AT and not same:
                    way = self._way(floor)
                if (
                    beaten >= _ENOUGH
                    or (index >= _LOOK_AT and (same or way in ("noise", "earlier labels")))
                    or time.monotonic() > end
                ):
                    break
                torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
                with own_steps():
                    adam.step()
            learned = beaten >= _ENOUGH and not same
            if learned:
                way = self._way(floor)
            return BlindRun(
                steps=index,
                same=same,
                way=way,
                learned=learned,
                last=Score.total([one.score for one in passes]),
                floor=floor,
                reads_inputs=learned and self._reads_inputs(),
                answers=passes[0].answers,
            )

    def require_labels(self) -> None:
        """Run three passes that tell whether the loss takes the batch's labels, whatever the inputs are.

        Raises:
            Unavailable: it does not.
            Broken: the user's step raised.
        """
        with self._sandbox.probe():
            if not self._sandbox.training[""]:
                self._target.model.train()
            self._compare_targets()

    @property
    def _first(self) -> tuple[Any, int]:
        return self._blind[0], self._parts[0].rows

    def _pairs(self) -> list[tuple[Any, Parts]]:
        return list(zip(self._blind, self._parts, strict=True))

    def _compare_targets(self) -> None:
        """Refuse where the targets of the loss are computed from the inputs, or are not the labels."""
        part, blind = self._parts[0], self._blind[0]
        given = self._passed(part.batch, part.rows)
        alike = self._passed(blind, part.rows)
        other = self._passed(part.with_labels(blind, lambda labels: labels.roll(1, 0)), part.rows)
        if not given.same_targets(alike):
            raise Unavailable("the targets of the loss are computed from the inputs")
        if alike.same_targets(other):
            raise Unavailable("the targets of the loss are not the labels of the batch")

    def _way(self, floor: float) -> Way | None:
        """What tells rows apart that have the same inputs."""
        part, blind = self._parts[0], self._blind[0]
        given, again = self._passed(blind, part.rows), self._passed(blind, part.rows, seed=1)
        if not given.same_predictions(again):
            return "noise"
        other = self._passed(part.with_labels(blind, lambda labels: labels.roll(1, 0)), part.rows)
        if given.same_predictions(other):
            return "place"
        if given.answers > 1:
            last = self._passed(part.with_labels(blind, _roll_last), part.rows)
            if given.same_predictions(last) or not part.labels[0].is_floating_point():
                return "earlier labels"
        return "labels"

    def _reads_inputs(self) -> bool:
        part, blind = self._parts[0], self._blind[0]
        return not self._passed(part.batch, part.rows).same_predictions(self._passed(blind, part.rows))

    def _learn(self, batch: Any, rows: int, seed: int) -> _Pass:
        if batch is self._blind[0]:
            for parameter in self._target.model.parameters():
                parameter.grad = None
        return self._passed(batch, rows, seed, train=True)

    def _passed(self, batch: Any, rows: int, seed: int = 0, *, train: bool = False) -> _Pass:
        seed_everything(seed)
        watch = Watch(self._main)
        with watch:
            loss = run_step(self._target, batch).loss
        score = watch.score(loss)
        self._main = watch.main
        if (found := watch.main_arguments) is None:
            raise Unavailable("no loss of torch's takes the labels, so the best blind answer is not known")
        if train:
            if not loss.requires_grad:
                raise Unavailable("the loss lost its graph")
            with watch:
                backward(loss / len(self._parts))
        return _Pass(*found, rows, score)


class _Pass:
    """The main loss call of one pass, row by row."""

    def __init__(self, func: Callable[..., Any], given: Mapping[str, Any], rows: int, score: Score) -> None:
        prediction, target = given["input"].detach(), given["target"].detach()
        if target.numel() % rows or prediction.numel() % rows or not target.numel():
            raise Unavailable("the loss does not take the same number of targets from each row")
        self._func, self._given, self._rows = func, given, rows
        self._prediction, self._target = prediction, target
        self.score = score
        classes = is_class_loss(func) and not (
            target.is_floating_point() and target.shape == prediction.shape
        )
        self.answers = target.numel() // rows
        self._indexed = classes

    def same_rows(self) -> bool:
        """Whether all rows got the same predictions, up to rounding."""
        values = self._prediction.reshape(self._rows, -1)
        return _close(values, values[:1], _ROUNDING.get(values.dtype, 1e-3))

    def same_predictions(self, other: _Pass) -> bool:
        """Whether another pass gave the same predictions, up to rounding."""
        one, two = self._prediction, other._prediction
        return one.shape == two.shape and _close(one, two, _ROUNDING.get(one.dtype, 1e-4))

    def same_targets(self, other: _Pass) -> bool:
        """Whether another pass had the same targets."""
        return self._target.shape == other._target.shape and torch.equal(self._target, other._target)

    def missed(self) -> float:
        """Errors, for classes; the loss, for values."""
        return self.score.errors if self.score.kind == "classes" else self.score.value

    def floor(self) -> float:
        """What the best answer misses that is the same for all rows, whichever way rows are laid out in the loss."""
        if is_class_loss(self._func):
            truth, counted = self._truth()
            return min(
                _least_errors(truth.reshape(shape), counted.reshape(shape), dim)
                for shape, dim in self._layouts
            )
        if self._prediction.shape != self._target.shape or self._given.get("weight") is not None:
            raise Unavailable(
                "the loss weighs or broadcasts its targets, so the best blind answer is not known"
            )
        return min(self._least_loss(shape, dim) for shape, dim in self._layouts)

    @property
    def _layouts(self) -> tuple[tuple[tuple[int, int], int], ...]:
        """Shapes in which the targets may lie, with the dimension of the rows."""
        return ((self._rows, -1), 0), ((-1, self._rows), 1)

    def _truth(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The classes and which of them count, row by row."""
        target = self._target
        if self._func in (F.binary_cross_entropy, F.binary_cross_entropy_with_logits):
            return (target > 0.5).long(), torch.ones_like(target, dtype=torch.bool)
        if not self._indexed:
            target = target.argmax(1 if target.ndim > 1 else 0)
        return target.long(), target != self._given.get("ignore_index", -100)

    def _least_loss(self, shape: tuple[int, int], dim: int) -> float:
        """The smallest loss over answers that are a mean, a median or one of the targets."""
        target = self._target.float().reshape(shape)
        candidates = [target.mean(dim, keepdim=True), target.median(dim, keepdim=True).values]
        candidates += list(target.split(1, dim))
        rest = {
            k: v for k, v in self._given.items() if k not in ("input", "target", "size_average", "reduce")
        }
        losses = [
            self._func(each.expand_as(target), target, **{**rest, "reduction": "none"}).mean(dim)
            for each in candidates
        ]
        least = torch.stack(losses).min(0).values
        return float(least.sum() * self._rows if rest.get("reduction") == "sum" else least.mean())


def _least_errors(truth: torch.Tensor, counted: torch.Tensor, dim: int) -> float:
    truth, counted = (value.movedim(dim, 0) for value in (truth, counted))
    right = 0
    for column, kept in zip(truth.T, counted.T, strict=True):
        values = column[kept]
        right += int(values.unique(return_counts=True)[1].max()) if len(values) else 0
    return float(int(counted.sum()) - right)


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    scale = float(one.abs().max()) if one.numel() else 0.0
    if not math.isfinite(scale):
        return torch.equal(one, other.expand_as(one))
    return float((one - other).abs().max()) <= tolerance * scale


def _roll_last(labels: torch.Tensor) -> torch.Tensor:
    """The last label of each row moved to the next row."""
    flat = labels.reshape(len(labels), -1).clone()
    flat[:, -1] = flat[:, -1].roll(1, 0)
    return flat.reshape(labels.shape)
