"""One term of a loss: what a loss function was given, and how the model's raw outputs lead there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit.loss.losses import Expects
from debugkit.tracing.playback import Playback


@dataclass(frozen=True, eq=False)
class LossTerm:
    """A call of one of torch's loss functions on which the step's loss depends, or a difference from a target.

    Attributes:
        name: such as ``cross_entropy``; ``difference`` for predictions from which the step takes targets itself.
        func: the function; for a difference, its square.
        expects: what its input must be.
        given: its arguments by name, without a graph.
        value: what it returned.
        weights: the derivative of the step's loss with respect to what it returned; ``None`` where the graph is gone.
        location: the source line that called it.
        from_batch: whether the target was computed from the batch.
        knows_labels: whether the input was computed with the labels in hand, as margin losses do.
        normalised: whether the input is the output of a softmax or sigmoid, whose own input ``way`` leads to.
        way: from the model's raw outputs to the first tensor that holds the input's values.
        back: from that tensor to the input.
        whole_target: the targets of the whole batch, of which the target is a part; ``None`` where they are not known.
        heads: names of the parameters that gave the raw outputs.
        features: root mean square of what these were multiplied with.
    """

    name: str
    func: Any = field(repr=False)
    expects: Expects
    given: Mapping[str, Any] = field(repr=False)
    value: torch.Tensor = field(repr=False)
    weights: torch.Tensor | None = field(repr=False)
    location: str | None
    from_batch: bool
    knows_labels: bool
    normalised: bool
    way: Playback = field(repr=False)
    back: Playback = field(repr=False)
    whole_target: torch.Tensor | None = field(repr=False)
    heads: tuple[str, ...]
    features: float | None

    @property
    def class_dim(self) -> int:
        """The dimension of the classes in the input."""
        given = self.given["input"]
        by_channel = self.name in ("cross_entropy", "nll_loss") and given.ndim > 1
        return 1 if by_channel else given.ndim - 1

    def call(self, **changes: Any) -> torch.Tensor:
        """The function's result with some arguments changed, in single precision or better."""
        given = {name: _single(value) for name, value in {**self.given, **changes}.items()}
        other = {"log_probs": "input", "targets": "target"}
        names = inspect.signature(self.func).parameters
        result: torch.Tensor = self.func(
            **{name: given[name if name in given else other[name]] for name in names}
        )
        return result

    def centre(self) -> torch.Tensor:
        """The mean (for an absolute loss: the median) of the targets that count, per column where all of them do."""
        target: torch.Tensor = self.given["target"].float()
        kept = torch.ones_like(target, dtype=torch.bool)
        if self.weights is not None and self.weights.shape == target.shape:
            kept = self.weights != 0
        middle = torch.Tensor.median if self.name == "l1_loss" else torch.Tensor.mean
        if not bool(kept.any()):
            return middle(target)
        if not bool(kept.all()) or target.ndim < 2 or len(target) < 2:
            return middle(target[kept])
        return (
            target.median(0, keepdim=True).values if self.name == "l1_loss" else target.mean(0, keepdim=True)
        )


def _single(value: Any) -> Any:
    low = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if low else value
