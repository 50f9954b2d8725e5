"""A recording of the torch functions that one step calls: which value was computed from which.

The recorder is a ``torch.overrides`` mode: nothing of the user's program is replaced. Dropout is switched off while it
records, so that the same values follow from the same inputs. See :mod:`debugkit.tracing.playback` for running parts again.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from debugkit.tracing.dropout import DROPOUTS, without_dropout
from debugkit.tracing.source import user_location

# fmt: off
VALUES_KEPT = frozenset(
    {
        "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "squeeze_", "unsqueeze",
        "unsqueeze_", "transpose", "permute", "movedim", "swapaxes", "swapdims", "t", "contiguous", "clone", "to",
        "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "expand", "expand_as",
        "__getitem__", "index_select", "gather", "take_along_dim", "masked_select", "narrow", "select", "chunk",
        "split", "tensor_split", "unbind", "requires_grad_", "alias", "T", "mT", "broadcast_to", "identity",
    }
)
"""Functions whose results hold nothing but values of their first argument."""

DENSE = frozenset(
    {
        "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "addmm",
        "addmv", "addbmm", "baddbmm", "einsum", "tensordot", "embedding", "embedding_bag",
        "multi_head_attention_forward", "grouped_mm", "_grouped_mm",
    }
)
"""Functions that mix values by a weight."""

_PLACED = frozenset(
    {
        "tanh", "tanh_", "sigmoid", "sigmoid_", "relu", "relu_", "relu6", "clamp", "clamp_", "clip", "clamp_min",
        "clamp_max", "hardtanh", "hardsigmoid", "softsign", "softplus", "normalize", "cosine_similarity", "cos", "sin",
        "softmax", "log_softmax", "square", "abs", "exp", "logsigmoid", "atan", "arctan", "erf", "elu",
    }
)
_FACTS = frozenset(
    {
        "shape", "dtype", "device", "requires_grad", "grad_fn", "ndim", "is_leaf", "layout", "is_cuda", "grad",
        "names", "itemsize", "is_sparse", "is_nested", "is_quantized", "is_meta", "is_mps", "is_xpu", "output_nr",
        "_version", "nbytes",
    }
)
# fmt: on


@dataclass(frozen=True)
class Ref:
    """A tensor in a recording."""

    key: int


@dataclass(eq=False)
class Op:
    """One call of a torch function.

    Attributes:
        index: its place in the recording.
        name: the function's name.
        func: the function.
        args: its arguments, tensors as :class:`Ref`.
        kwargs: its keyword arguments, likewise.
        results: keys of the tensors among its results.
        trained: whether a gradient goes through it.
        in_place: whether its result is its first argument, with new values.
        location: the source line, recorded for losses, activations and single numbers.
        by_user: whether it is the user's own.
    """

    index: int
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    trained: bool
    in_place: bool
    location: str | None
    by_user: bool

    @property
    def needs(self) -> tuple[int, ...]:
        """Keys of the tensors among its arguments."""
        return tuple(ref.key for ref in _refs((self.args, self.kwargs)))


class Recording(TorchFunctionMode):
    """Records while active.

    Args:
        watched: functions whose calls get a source location.

    Attributes:
        ops: the calls that gave tensors, in order.
        readers: per key, the functions that read a tensor without giving one, such as ``item``.
        measured: per key, the value of a watched function's result, where it is one number.
    """

    def __init__(self, watched: Iterable[Callable[..., Any]] = ()) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.readers: dict[int, list[str]] = {}
        self.measured: dict[int, float] = {}
        self._watched = frozenset(watched)
        self._keys: Any = WeakIdKeyDictionary()
        self._values: list[Any] = []
        self._carried: list[bool] = []
        self._makers: dict[int, int] = {}
        self._users: dict[int, list[int]] = {}
        self._nodes: dict[int, Any] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name in _FACTS:
                return func(*args, **kwargs)
        if func in DROPOUTS and args:
            return args[0]
        kwargs = without_dropout(func, kwargs)
        if any(map(is_functorch_wrapped_tensor, tensors_in((args, kwargs)))):
            return func(*args, **kwargs)
        before = _mapped((args, kwargs), torch.Tensor, self._ref)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        version = _version(first)
        result = func(*args, **kwargs)
        in_place = name == "__setitem__" or (result is first and _version(first) != version)
        self._record(name, func, (before, in_place), args, result)
        return result

    def key(self, tensor: torch.Tensor) -> int:
        """The key of a tensor's present values."""
        return self._ref(tensor).key

    def known(self, tensor: torch.Tensor) -> int | None:
        """The key of a tensor; ``None`` for one that no call took or gave."""
        found: int | None = self._keys.get(tensor)
        return found

    def value(self, key: int) -> torch.Tensor | None:
        """The tensor; ``None`` for a number with a gradient that nobody holds any more."""
        held = self._values[key]
        found: torch.Tensor | None = held() if isinstance(held, weakref.ref) else held
        return found

    def carries_gradient(self, key: int) -> bool:
        """Whether the tensor required a gradient when it was first seen: what is written into later may get one."""
        return self._carried[key]

    def node(self, key: int) -> Any:
        """The autograd node of a number that carries a gradient."""
        return self._nodes.get(key)

    def maker(self, key: int) -> Op | None:
        """The call that gave a tensor; ``None`` for what came from outside."""
        index = self._makers.get(key)
        return None if index is None else self.ops[index]

    def users(self, key: int) -> list[Op]:
        """The calls that took a tensor and gave tensors."""
        return [self.ops[index] for index in self._users.get(key, ())]

    @property
    def numbers(self) -> Mapping[int, Any]:
        """The single numbers that carry a gradient: their autograd nodes by key."""
        return self._nodes

    def root(self, key: int) -> int:
        """Where the values come from, behind reshapes, slices and casts."""
        while (op := self.maker(key)) is not None and op.name in VALUES_KEPT and (needs := op.needs):
            key = needs[0]
        return key

    def is_weighted(self, op: Op) -> bool:
        """Whether a call mixes values by a parameter that it takes as it is, on the path of a gradient."""
        return op.trained and op.name in DENSE and any(self.is_weight(key) for key in op.needs)

    def is_weight(self, key: int) -> bool:
        """Whether a tensor is a parameter, or a view of one."""
        return isinstance(self.value(self.root(key)), torch.nn.Parameter)

    def derived(self, sources: Iterable[int]) -> set[int]:
        """Keys of all that was computed from some tensors, themselves included."""
        found = set(sources)
        for op in self.ops:
            if not found.isdisjoint(op.needs):
                found.update(op.results)
        return found

    def _ref(self, tensor: torch.Tensor) -> Ref:
        key = self._keys.get(tensor)
        if key is not None and tensor.requires_grad and self._is_reborn(key):
            key = None
        if key is None:
            key = self._enter(tensor, keep=True)
        return Ref(key)

    def _is_reborn(self, key: int) -> bool:
        """Whether a tensor got its gradient from a custom function, behind which nothing can be followed."""
        op = self.maker(key)
        return op is not None and not op.trained and op.name != "requires_grad_"

    def _enter(self, tensor: torch.Tensor, keep: bool) -> int:
        key = len(self._values)
        self._carried.append(tensor.requires_grad)
        self._values.append(tensor if keep else weakref.ref(tensor))
        self._keys[tensor] = key
        return key

    def _record(self, name: str, func: Any, before: Any, args: tuple[Any, ...], result: Any) -> None:
        (taken, named), in_place = before
        given = [args[0]] if in_place else list(tensors_in(result))
        if not in_place and given and {id(t) for t in given} <= {id(t) for t in tensors_in(args)}:
            return
        needs = dict.fromkeys(ref.key for ref in _refs((taken, named)))
        if not given:
            for key in needs:
                self.readers.setdefault(key, []).append(name)
            return
        trained = any(tensor.requires_grad for tensor in given)
        number = trained and len(given) == 1 and given[0].numel() == 1 and name not in DENSE
        alone = given[0].ndim == 0 and given[0].is_floating_point()
        placed = number or alone or name in _PLACED or func in self._watched
        own = user_location() if placed else None
        location = own or (user_location(outer=True) if func in self._watched else None)
        keys = tuple(self._enter(tensor, keep=not number) for tensor in given)
        index = len(self.ops)
        if number:
            self._nodes[keys[0]] = given[0].grad_fn
        if func in self._watched and given[0].numel() == 1:
            self.measured[keys[0]] = float(given[0].detach()) if not given[0].is_meta else math.nan
        self._makers.update(dict.fromkeys(keys, index))
        for key in needs:
            self._users.setdefault(key, []).append(index)
        self.ops.append(
            Op(index, name, func, taken, named, keys, trained, in_place, location, own is not None)
        )


def _version(tensor: torch.Tensor | None) -> int:
    if tensor is None or is_lazy(tensor) or tensor.is_inference():
        return -1
    return tensor._version


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs(item)


def with_tensors(value: Any, fetch: Callable[[int], torch.Tensor]) -> Any:
    """The same structure with a tensor in place of each :class:`Ref`."""
    return _mapped(value, Ref, lambda ref: fetch(ref.key))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if type(value) is dict:
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, kind, change) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, kind, change) for item in value))
    if isinstance(value, slice):
        return slice(*(_mapped(item, kind, change) for item in (value.start, value.stop, value.step)))
    return value
