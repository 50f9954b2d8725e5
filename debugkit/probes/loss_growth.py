"""How the loss grows with the batch: the same samples once, and twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import size, sliceable, take
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.losses import LOSSES, bind_loss, loss_name
from debugkit.probes.batches import Batches
from debugkit.probes.loss_response import begin
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.dropout import NoDropout
from debugkit.tracing.source import user_location
from debugkit.tracing.tape import flat

_MOST = 4
_SUMS = frozenset({"sum", "nansum", "einsum", "dot"})
# fmt: off
_RANDOM = frozenset(
    {
        "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
        "multinomial", "poisson", "normal_", "uniform_", "bernoulli_", "exponential_", "gumbel_softmax",
    }
)
# fmt: on


@dataclass(frozen=True)
class Total:
    """A sum to one number on which the loss depends.

    Attributes:
        name: such as ``sum``, or the loss function that was told to sum.
        is_loss: whether it is one of torch's loss functions.
        location: the user's source line.
        terms: how many values were summed.
        share: the part of the loss that it makes up.
        weight: what it is multiplied with on the way to the loss.
        grows: whether twice the samples are twice the terms, with the same weight.
    """

    name: str
    is_loss: bool
    location: str | None
    terms: int
    share: float = 0.0
    weight: float = 0.0
    grows: bool = False


@dataclass(frozen=True)
class LossGrowth:
    """The loss of a few samples, and of the same samples given twice, without dropout.

    Attributes:
        rows: how many samples.
        once: their loss.
        twice: the loss of each of them twice.
        totals: sums on the way to the loss, the largest first.
        batch_size: how many samples the user's batch holds.
        random: whether the step drew random numbers.
    """

    cost: ClassVar[Cost] = "forward"
    rows: int
    once: float
    twice: float
    totals: tuple[Total, ...]
    batch_size: int
    random: bool

    @property
    def ratio(self) -> float:
        """How many times the loss grows; ``nan`` for a loss of 0."""
        return self.twice / self.once if abs(self.once) > 1e-8 else math.nan

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches) -> LossGrowth:
        """Run the step on at most four samples of the first batch, and on these twice.

        Raises:
            Unavailable: the batch holds one sample, can't be cut, or the step does not run on other batch sizes.
        """
        batch = batches.first
        count = size(batch) or 0
        if count < 2 or not sliceable(batch):
            raise Unavailable("the first batch can't be cut into samples, so the loss of fewer is not known")
        rows = range(max(1, min(_MOST, 3 * count // 8)))
        try:
            with sandbox.probe():
                begin(target, sandbox)
                once, first = _run(target, take(batch, rows))
                twice, second = _run(target, take(batch, [*rows, *rows]))
        except Broken as error:
            raise Unavailable(f"the step does not run on batches of other sizes: {error}") from error
        if once.numel() != 1 or twice.numel() != 1:
            raise Unavailable("the loss is no scalar, so it does not say how it is reduced")
        return LossGrowth(
            rows=len(rows),
            once=float(once.detach()),
            twice=float(twice.detach()),
            totals=tuple(_growing(first, second)),
            batch_size=count,
            random=first.random,
        )


def _run(target: Target, batch: Any) -> tuple[torch.Tensor, _Totals]:
    seed_everything(0)
    with NoDropout(), _Totals() as seen:
        loss = run_step(target, batch).loss
    seen.weigh(loss)
    return loss, seen


def _growing(first: _Totals, second: _Totals) -> Iterator[Total]:
    """The sums of both runs, the largest part of the loss first."""
    pairs = zip(first.found, second.found, strict=False)
    both = [
        replace(
            one, grows=other.terms >= 2 * one.terms and math.isclose(other.weight, one.weight, rel_tol=1e-3)
        )
        for one, other in pairs
        if one.weight and one.name == other.name
    ]
    yield from sorted(both, key=lambda total: -total.share)


class _Totals(TorchFunctionMode):
    """Records sums to one number.

    Attributes:
        found: the sums, in order.
        random: whether random numbers were drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Total] = []
        self.random = False
        self._results: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        self.random |= name in _RANDOM
        if not isinstance(result, torch.Tensor) or result.numel() != 1 or not result.requires_grad:
            return result
        is_loss = func in LOSSES
        if is_loss and bind_loss(func, args, kwargs).get("reduction") != "sum":
            return result
        terms = max((one.numel() for one in flat((args, kwargs))), default=0)
        if (is_loss or name in _SUMS) and terms > 1:
            shown = loss_name(func) if is_loss else name
            self.found.append(Total(shown, is_loss, user_location(outer=True), terms))
            self._results.append(result)
        return result

    def weigh(self, loss: torch.Tensor) -> None:
        """Find out what each sum is multiplied with on the way to the loss."""
        if not self._results or not loss.requires_grad:
            return
        try:
            slopes = torch.autograd.grad(loss.sum(), self._results, allow_unused=True)
        except RuntimeError:  # the step ran `backward` itself and used the graph up
            return
        whole = abs(float(loss.detach().sum())) or 1.0
        for place, (result, slope) in enumerate(zip(self._results, slopes, strict=True)):
            if slope is not None:
                weight = abs(float(slope))
                share = weight * abs(float(result.detach())) / whole
                self.found[place] = replace(self.found[place], share=share, weight=weight)
