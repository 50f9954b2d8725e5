"""What the user's step does with the labels: followed as a taint through one forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from debugkit.batch import split, tensors
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.losses import LOSSES

_LOOKUPS = frozenset({"__getitem__", "index_select", "take", "gather"})
_ESCAPES = frozenset({"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__"})
_NUMERIC = frozenset(
    {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "gaussian_nll_loss"}
)


@dataclass(frozen=True)
class LabelUse:
    """How the labels reach the loss.

    Attributes:
        used: whether the loss depends on the labels, as far as could be followed.
        losses: names of the torch losses that took the labels as their target.
        reweighted: whether the loss weighs classes: class weights, ``pos_weight``, a weight looked up by label, or
            an unreduced loss multiplied by something that depends on the label (focal loss).
        alone: whether no call of the same loss takes other targets (as the other half of a GAN does).
    """

    cost: ClassVar[Cost] = "forward"
    used: bool
    losses: tuple[str, ...]
    reweighted: bool
    alone: bool

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, samples: Samples) -> LabelUse:
        """Run the step once on the first batch.

        Raises:
            Unavailable: there are no labels to follow, nothing about them calls for it, or the step does not run.
        """
        if not samples.representative.skewed:
            raise Unavailable("the labels are balanced, so how they are used does not matter")
        found = [tensor for _, tensor in tensors(split(batches.first)[1])]
        if not found:
            raise Unavailable("the labels of the first batch are no tensors")
        with sandbox.probe(), _Taint(found) as taint:
            if not sandbox.training[""]:
                target.model.train()
            try:
                loss = run_step(target, batches.first).loss
            except Broken as error:
                raise Unavailable(f"the step could not be followed: {error}") from error
            return LabelUse(
                used=taint.holds(loss) or taint.escaped,
                losses=tuple(taint.losses),
                reweighted=taint.reweighted,
                alone=taint.others.isdisjoint(taint.losses),
            )

    @property
    def numeric(self) -> bool:
        """Whether every loss that takes the labels compares them as numbers."""
        return bool(self.losses) and _NUMERIC.issuperset(self.losses)


class _Taint(TorchFunctionMode):
    """Marks tensors, and all that is computed from them while active."""

    def __init__(self, sources: list[torch.Tensor]) -> None:
        super().__init__()
        self._marked = {id(tensor): tensor for tensor in sources}
        self._unreduced = False
        self.escaped = False
        self.losses: list[str] = []
        self.reweighted = False
        self.others: set[str] = set()

    def holds(self, value: Any) -> bool:
        return id(value) in self._marked

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = list(_flat((args, kwargs)))
        name = getattr(func, "__name__", "")
        if any(self.holds(value) for value in given):
            if name == "__get__" and not isinstance(result, torch.Tensor):
                return result
            self.escaped |= name in _ESCAPES
            self._note(func, name, args, kwargs)
            for value in _flat(result):
                self._marked[id(value)] = value
            if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
                self._marked[id(args[0])] = args[0]
        elif func in LOSSES:
            self.others.add(name)
        return result

    def _note(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if func in LOSSES:
            bound = inspect.signature(func).bind(*args, **kwargs).arguments
            target = bound.get("target", bound.get("targets"))
            if self.holds(target):
                self.losses.append(getattr(func, "__name__", ""))
                self._unreduced |= bound.get("reduction") == "none"
                weights = [bound.get("weight"), bound.get("pos_weight")]
                self.reweighted |= any(_uneven(weight) or self.holds(weight) for weight in weights)
        elif name in _LOOKUPS and isinstance(args[0], torch.Tensor) and not self.holds(args[0]):
            self.reweighted |= args[0].ndim == 1 and args[0].is_floating_point() and _uneven(args[0])
        elif name in ("mul", "__mul__", "__rmul__", "mul_") and self._unreduced:
            self.reweighted |= sum(self.holds(value) for value in args) == 2


def _uneven(weight: Any) -> bool:
    if not isinstance(weight, torch.Tensor) or not weight.numel():
        return False
    return bool((weight != weight.flatten()[0]).any()) or (weight.numel() == 1 and float(weight) != 1)


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
