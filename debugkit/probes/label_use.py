"""What the user's step does with the labels: followed as a taint through one forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import split
from debugkit.data.labels import Labels, tensors_by_path
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.losses import LOSSES
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target

DECLARED = ""
"""The source that stands for the labels as :func:`debugkit.data.batch.split` gives them."""

_LOOKUPS = frozenset({"getitem", "index_select", "take", "gather"})
_ESCAPES = frozenset({"item", "tolist", "numpy", "array", "float", "int", "bool"})
_NUMERIC = frozenset(
    {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "gaussian_nll_loss"}
)
_CLASS_LOSSES = frozenset(
    {
        F.cross_entropy,
        F.nll_loss,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.multi_margin_loss,
        F.multilabel_margin_loss,
        F.multilabel_soft_margin_loss,
        F.soft_margin_loss,
        F.hinge_embedding_loss,
    }
)
# fmt: off
_MOVES = frozenset(
    {
        "to", "long", "int", "float", "double", "half", "bfloat16", "bool", "type", "type_as", "cpu",
        "cuda", "detach", "clone", "contiguous", "view", "view_as", "reshape", "flatten", "squeeze",
        "unsqueeze", "expand", "expand_as", "repeat", "transpose", "permute", "t", "movedim", "getitem",
        "cat", "stack", "masked_select", "masked_fill", "requires_grad", "one_hot", "argmax",
    }
)
_SHIFTS = frozenset(
    {
        "add", "radd", "sub", "rsub", "subtract", "mul", "rmul", "multiply", "div", "truediv",
        "true_divide", "floordiv", "floor_divide",
    }
)
# fmt: on


@dataclass(frozen=True)
class Use:
    """How one part of the batch reaches the loss.

    Attributes:
        used: whether the loss depends on it, as far as could be followed.
        losses: names of the torch losses whose target depends on it.
        class_target: whether it is itself the target of a loss over classes, up to casts, shapes and shifts.
        in_predictions: whether predictions that a loss takes depend on it too.
        reweighted: whether the loss weighs classes: class weights, ``pos_weight``, a weight looked up by label, or
            an unreduced loss multiplied by something that depends on the label (focal loss).
        alone: whether no call of the same loss takes targets from elsewhere (as the other half of a GAN does).
    """

    used: bool = False
    losses: tuple[str, ...] = ()
    class_target: bool = False
    in_predictions: bool = False
    reweighted: bool = False
    alone: bool = True

    @property
    def numeric(self) -> bool:
        """Whether every loss that takes it compares it as numbers."""
        return bool(self.losses) and _NUMERIC.issuperset(self.losses)

    @property
    def is_label(self) -> bool:
        """Whether the step predicts its classes from the rest of the batch."""
        return self.class_target and not self.in_predictions


@dataclass(frozen=True)
class LabelUse:
    """How the labels, and all that could be labels, reach the loss.

    Attributes:
        sources: by place in the batch, as in :attr:`Samples.candidates`; :data:`DECLARED` for the labels that
            the batch's shape suggests.
    """

    cost: ClassVar[Cost] = "forward"
    sources: Mapping[str, Use] = field(default_factory=dict)

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, samples: Samples) -> LabelUse:
        """Run the step once on the first batch.

        Raises:
            Unavailable: there are no labels to follow, nothing about them calls for it, or the step does not run.
        """
        known = samples.origin in ("named", "pair") and _is_balanced(samples.representative)
        if known or not (samples.candidates or samples.representative.skewed):
            raise Unavailable("the labels are balanced, so how they are used does not matter")
        found = tensors_by_path(batches.first)
        sources = {path: found[path] for path in samples.candidates if path in found}
        declared = [each for each in tensors_by_path(split(batches.first)[1]).values() if each]
        if declared:
            sources[DECLARED] = [tensor for each in declared for tensor in each]
        if not sources:
            raise Unavailable("the labels of the first batch are no tensors")
        with sandbox.probe(), _Taint(sources) as taint:
            if not sandbox.training[""]:
                target.model.train()
            try:
                loss = run_step(target, batches.first).loss
            except Broken as error:
                raise Unavailable(f"the step could not be followed: {error}") from error
            return LabelUse({source: taint.use(source, loss) for source in sources})


def _is_balanced(labels: Labels) -> bool:
    return labels.kind in ("classes", "multi-label") and not labels.skewed


@dataclass(frozen=True)
class _Mark:
    """What a tensor comes from: ``derived`` in any way, ``same`` up to a one-to-one change of its values."""

    tensor: torch.Tensor
    derived: frozenset[str]
    same: frozenset[str]


@dataclass
class _Trail:
    losses: list[str] = field(default_factory=list)
    class_target: bool = False
    in_predictions: bool = False
    reweighted: bool = False
    unreduced: bool = False
    escaped: bool = False


class _Taint(TorchFunctionMode):
    """Marks tensors, and all that is computed from them while active."""

    def __init__(self, sources: Mapping[str, list[torch.Tensor]]) -> None:
        super().__init__()
        self._marks: dict[int, _Mark] = {}
        self._trails = {source: _Trail() for source in sources}
        self._others: set[str] = set()
        for source, each in sources.items():
            for tensor in each:
                self._mark(tensor, frozenset({source}), frozenset({source}))

    def use(self, source: str, loss: torch.Tensor) -> Use:
        """What was seen of a source."""
        trail = self._trails[source]
        return Use(
            used=source in self._derived(loss) or trail.escaped,
            losses=tuple(trail.losses),
            class_target=trail.class_target,
            in_predictions=trail.in_predictions,
            reweighted=trail.reweighted,
            alone=self._others.isdisjoint(trail.losses),
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        raw = getattr(func, "__name__", "")
        name = raw.strip("_")
        if func in LOSSES:
            self._loss(func, raw, args, kwargs)
        carried = _without_mask(name, args)
        derived = self._derived(*_flat((carried, kwargs)))
        if not derived or (raw == "__get__" and not isinstance(result, torch.Tensor)):
            return result
        if name in _ESCAPES and not isinstance(result, torch.Tensor):
            for source in derived:
                self._trails[source].escaped = True
        if func not in LOSSES:
            self._weights(name, args)
        same = self._kept(name, raw, args, kwargs)
        for value in _flat(result):
            self._mark(value, derived, same)
        if raw == "__setitem__" or (raw.endswith("_") and not raw.endswith("__")):
            self._mark(args[0], derived | self._derived(args[0]), self._same(args[0]))
        return result

    def _mark(self, tensor: torch.Tensor, derived: frozenset[str], same: frozenset[str]) -> None:
        before = self._marks.get(id(tensor))
        if before is not None:
            derived, same = derived | before.derived, same | before.same
        self._marks[id(tensor)] = _Mark(tensor, derived, same)

    def _derived(self, *values: Any) -> frozenset[str]:
        marks = (self._marks.get(id(value)) for value in values)
        return frozenset().union(*(mark.derived for mark in marks if mark is not None))

    def _same(self, *values: Any) -> frozenset[str]:
        marks = (self._marks.get(id(value)) for value in values)
        return frozenset().union(*(mark.same for mark in marks if mark is not None))

    def _kept(self, name: str, raw: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> frozenset[str]:
        """The sources that a function passes on one to one."""
        if raw == "__get__" or name in _MOVES:
            return self._same(*_flat(args[:1]))
        if name in _SHIFTS and not any(
            isinstance(value, torch.Tensor) and value.numel() > 1 and id(value) not in self._marks
            for value in (*args, *kwargs.values())
        ):
            found = [value for value in _flat((args, kwargs)) if self._same(value)]
            return self._same(found[0]) if len(found) == 1 else frozenset()
        return frozenset()

    def _loss(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        target = given.get("target", given.get("targets"))
        predicted = given.get("input", given.get("log_probs"))
        for source in self._derived(predicted):
            self._trails[source].in_predictions = True
        sources = self._derived(target)
        if not sources:
            self._others.add(name)
        for source in sources:
            trail = self._trails[source]
            trail.losses.append(name)
            trail.class_target |= func in _CLASS_LOSSES and source in self._same(target)
            trail.unreduced |= given.get("reduction") == "none"
            weights = [given.get("weight"), given.get("pos_weight")]
            trail.reweighted |= any(_uneven(weight) or source in self._derived(weight) for weight in weights)

    def _weights(self, name: str, args: tuple[Any, ...]) -> None:
        """Weights that are looked up by label, and losses that are multiplied by what depends on it."""
        if name in _LOOKUPS and isinstance(args[0], torch.Tensor):
            table = args[0].ndim == 1 and args[0].is_floating_point() and _uneven(args[0])
            for source in self._derived(*_flat(args[1:])) - self._derived(args[0]) if table else ():
                self._trails[source].reweighted = True
        elif name in ("mul", "rmul") and len(args) == 2:
            for source in self._derived(args[0]) & self._derived(args[1]):
                self._trails[source].reweighted |= self._trails[source].unreduced


def _without_mask(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a selection without the mask that selects: it decides what counts, not what it is."""
    masked = name == "masked_select" or (
        name == "getitem" and any(index.dtype == torch.bool for index in _flat(args[1:]))
    )
    return args[:1] if masked else args


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
