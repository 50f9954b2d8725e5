"""Where the values of a batch go during a step: into the model, or past it into the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.places import Places
from debugkit.loss.losses import LOSSES, bind_loss, loss_name
from debugkit.tracing.dropout import DROPOUTS, without_dropout
from debugkit.tracing.source import user_location
from debugkit.tracing.tape import Tape, flat, written

# fmt: off
_LAYERS = frozenset(
    {
        "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "convolution", "embedding", "embedding_bag", "matmul", "rmatmul", "mm", "bmm", "mv",
        "addmm", "baddbmm", "addbmm", "einsum", "tensordot", "layer_norm", "batch_norm", "group_norm",
        "instance_norm", "rms_norm", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu",
        "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    }
)
_MEETS = frozenset(
    {
        "add", "radd", "sub", "rsub", "subtract", "mul", "rmul", "multiply", "div", "rdiv", "truediv", "rtruediv",
        "divide", "true_divide", "pow", "rpow", "maximum", "minimum", "where", "lerp", "fmax", "fmin", "xlogy",
        "iadd", "isub", "imul", "itruediv", "logaddexp", "gather", "take_along_dim", "getitem", "cdist", "dist",
        "pairwise_distance", "cosine_similarity",
    }
)
_UNRELATED = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros",
     "new_ones", "new_full", "new_empty", "new_tensor", "size", "dim", "numel", "backward", "retain_grad",
     "register_hook", "requires_grad"}
)
_PICKS = frozenset({"gather", "take_along_dim", "getitem"})
_NORMAL = frozenset({"randn", "randn_like", "normal", "standard_normal"})
_ESCAPES = frozenset({"item", "tolist", "numpy", "array", "float", "int", "bool", "index"})
# fmt: on


@dataclass(frozen=True, eq=False)
class Mark:
    """What is known of a tensor.

    Attributes:
        tensor: the tensor, held so that its ``id`` stays its own.
        sources: the parts of the batch that it was computed from without a layer in between.
        predicted: whether a layer of a model is behind it.
        raw: whether it is a parameter, or computed from parameters alone.
    """

    tensor: torch.Tensor
    sources: frozenset[str] = frozenset()
    predicted: bool = False
    raw: bool = False


@dataclass(frozen=True, eq=False)
class Meeting:
    """A call in which something from the batch meets a prediction.

    Attributes:
        name: the function, such as ``sub`` or ``mse_loss``.
        batch: the tensor that comes from the batch; in a crossing it may be a prediction too.
        predicted: the prediction.
        result: what it returned.
        entry: the call's number on the tape.
        argument: the place of ``batch`` among the positional arguments; ``None`` where it was given by name.
        location: the user's source line.
        unsqueezed: whether one of the two had just been given a new axis.
    """

    name: str
    batch: torch.Tensor
    predicted: torch.Tensor
    result: torch.Tensor
    entry: int
    argument: int | None
    location: str | None
    unsqueezed: bool


@dataclass(frozen=True, eq=False)
class LossUse:
    """A call of one of torch's loss functions.

    Attributes:
        name: such as ``cross_entropy``.
        func: the function.
        given: its arguments by name.
        result: what it returned.
        location: the user's source line.
        sources: the parts of the batch behind its target.
        weighted_by: the parts of the batch behind its weights.
    """

    name: str
    func: Callable[..., Any]
    given: Mapping[str, Any]
    result: torch.Tensor
    location: str | None
    sources: frozenset[str]
    weighted_by: frozenset[str]


@dataclass(frozen=True)
class RefusedLoss:
    """A loss function that raised.

    Attributes:
        name: such as ``cross_entropy``.
        given: its arguments by name.
        location: the user's source line.
        error: what it raised.
    """

    name: str
    given: Mapping[str, Any]
    location: str | None
    error: Exception


@dataclass(frozen=True, eq=False)
class _Call:
    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    written: torch.Tensor | None


class Flow(TorchFunctionMode):
    """Follows the parts of a batch while active, with dropout off.

    Args:
        sources: the tensors of each part, by its place.

    Attributes:
        tape: every call that took something from the batch or a prediction, layers apart.
        calls: loss functions that were called.
        refused: the loss function that raised.
        meetings: where something from the batch met a prediction.
        crossings: meetings, of two predictions too, in which broadcasting widened both sides.
        paired: whether samples were held against other samples of the same kind.
        fed: the parts of the batch that went into a layer.
        escaped: the parts of the batch that left torch, as numbers or NumPy arrays.
        lost: the parts of the batch that were written where they can't be followed.
        places: where the elements of reshaped tensors come from.
        layers: the layer that gave a tensor, such as ``linear`` or ``conv2d``, by ``id``.
        sampled: whether random numbers were drawn from a normal distribution.
    """

    def __init__(self, sources: Mapping[str, Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.tape = Tape()
        self.calls: list[LossUse] = []
        self.refused: RefusedLoss | None = None
        self.meetings: list[Meeting] = []
        self.crossings: list[Meeting] = []
        self.paired = False
        self.fed: set[str] = set()
        self.escaped: set[str] = set()
        self.lost: set[str] = set()
        self.places = Places()
        self.layers: dict[int, str] = {}
        self.sampled = False
        self._marks: dict[int, Mark] = {}
        for source, tensors in sources.items():
            for tensor in tensors:
                before = self._marks.get(id(tensor), Mark(tensor))
                self._marks[id(tensor)] = replace(before, sources=before.sources | {source})
        self._parts = frozenset(self._marks)

    def mark(self, tensor: torch.Tensor) -> Mark:
        """What is known of a tensor."""
        known = self._marks.get(id(tensor))
        if known is not None:
            return known
        if isinstance(tensor, torch.nn.Parameter):
            return Mark(tensor, raw=True)
        return Mark(tensor, predicted=tensor.requires_grad)

    def is_given(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a part of the batch, in whatever shape."""
        return id(self.places.origin(tensor)) in self._parts

    def sources(self, value: Any) -> frozenset[str]:
        """The parts of the batch that the tensors in a value were computed from."""
        return frozenset().union(*(self.mark(tensor).sources for tensor in flat(value)))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in DROPOUTS and args:
            return args[0]
        kwargs = without_dropout(func, kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        name = name.strip("_")
        marks = [self.mark(tensor) for tensor in flat((args, kwargs))]
        target = written(func, args, kwargs)
        before = self._before(target, marks)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if func in LOSSES and self.refused is None:
                given = bind_loss(func, args, kwargs)
                self.refused = RefusedLoss(loss_name(func), given, user_location(outer=True), error)
            raise
        self.sampled |= name in _NORMAL
        self.places.see(name, func, args, kwargs, result)
        if any(True for _ in flat(result)) or target is not None:
            if name not in _UNRELATED:
                self._follow(_Call(func, name, args, kwargs, result, target), marks, before)
        elif name in _ESCAPES:
            self.escaped |= frozenset[str]().union(*(mark.sources for mark in marks))
        return result

    def _follow(self, call: _Call, marks: list[Mark], before: torch.Tensor | None) -> None:
        raw = bool(marks) and all(mark.raw for mark in marks)
        layer = call.name in _LAYERS and any(mark.raw for mark in marks)
        sources = frozenset[str]().union(*(mark.sources for mark in marks))
        predicted = layer or any(mark.predicted or (mark.raw and not raw) for mark in marks)
        if layer:
            self.fed |= sources
            sources = frozenset()
            self.layers.update((id(tensor), call.name) for tensor in flat(call.result))
        if not (sources or predicted or raw):
            return
        if not (raw or layer):
            entry = self.tape.record(call.func, call.args, call.kwargs, call.result, before)
            if call.func in LOSSES and isinstance(call.result, torch.Tensor):
                self._loss(call, entry)
            elif call.name in _MEETS and isinstance(call.result, torch.Tensor):
                self._meet(call, entry)
        if call.name == "broadcast_tensors":
            for tensor, mark in zip(flat(call.result), marks, strict=True):
                self._marks[id(tensor)] = replace(mark, tensor=tensor)
            return
        for tensor in flat(call.result):
            self._marks[id(tensor)] = Mark(tensor, sources, predicted, raw)
        if call.written is not None:
            known = self.mark(call.written)
            changed = Mark(call.written, sources | known.sources, predicted or known.predicted)
            self._marks[id(call.written)] = changed

    def _before(self, target: torch.Tensor | None, marks: list[Mark]) -> torch.Tensor | None:
        """What a tensor holds that is about to be written to."""
        if target is None or not any(mark.sources or mark.predicted for mark in marks):
            return None
        if target._base is not None and not self.mark(target).sources:
            self.lost |= frozenset[str]().union(*(mark.sources for mark in marks))
        return target.clone()

    def _meet(self, call: _Call, entry: int) -> None:
        given = [*flat((call.args, call.kwargs))]
        if call.name == "where":
            given = given[-2:]
        elif call.name == "getitem":
            given = [given[0], *(tensor for tensor in given[1:] if self.mark(tensor).sources)]
        if len(given) >= 2 and given[0] is not given[1]:
            self._put(call, given[0], given[1], entry)

    def _loss(self, call: _Call, entry: int) -> None:
        given = bind_loss(call.func, call.args, call.kwargs)
        prediction, target = given.get("input"), given.get("target")
        weights = self.sources([given.get("weight"), given.get("pos_weight")])
        self.calls.append(
            LossUse(
                loss_name(call.func),
                call.func,
                given,
                call.result,
                user_location(outer=True),
                self.sources(target),
                weights,
            )
        )
        if isinstance(prediction, torch.Tensor) and isinstance(target, torch.Tensor):
            self._put(call, prediction, target, entry)

    def _put(self, call: _Call, one: torch.Tensor, other: torch.Tensor, entry: int) -> None:
        """Keep what meets here: something from the batch and a prediction, or two that cross."""
        first, second = self.mark(one), self.mark(other)
        crossing = call.name not in _PICKS and crosses(one.shape, other.shape)
        same = self.places.origin(one) is self.places.origin(other)
        if call.name == "cdist" or (crossing and (same or not (first.predicted or second.predicted))):
            self.paired = True
            return
        for batch, predicted in ((second, first), (first, second)):
            pure = bool(batch.sources) and not batch.predicted and not predicted.sources & batch.sources
            if not (predicted.predicted and (pure or crossing)):
                continue
            meeting = Meeting(
                call.name,
                batch.tensor,
                predicted.tensor,
                call.result,
                entry,
                next((place for place, arg in enumerate(call.args) if arg is batch.tensor), None),
                user_location(outer=True),
                bool({id(one), id(other)} & self.places.widened),
            )
            if pure:
                self.meetings.append(meeting)
            if crossing:
                self.crossings.append(meeting)
            return


def crosses(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether broadcasting two shapes against each other widens both."""
    width = max(len(one), len(other))
    left = [1] * (width - len(one)) + [*one]
    right = [1] * (width - len(other)) + [*other]
    return any(a > 1 and b == 1 for a, b in zip(left, right, strict=True)) and any(
        b > 1 and a == 1 for a, b in zip(left, right, strict=True)
    )
