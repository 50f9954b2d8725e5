"""The state of tensors: recorded, copied just before something writes to them, and put back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from debugkit.state.objects import attempt

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorState:
    """A tensor's memory, flags, gradient and version; its values too once :meth:`keep_values` was called."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.bytes = tensor.numel() * tensor.element_size() if not _is_lazy(tensor) else 0
        self.grad = tensor.grad if tensor.is_leaf else None
        self._leaf = tensor.is_leaf
        self._requires_grad = tensor.requires_grad
        self._values: torch.Tensor | None = None
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        self._data = tensor.data if plain and not tensor.is_meta else None
        counter = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
        self._version = None if tensor.is_inference() else counter(tensor)

    @property
    def kept(self) -> bool:
        """Whether nothing more has to be copied before the values may change."""
        return self._values is not None or self.tensor.is_meta or not self.bytes

    def keep_values(self) -> None:
        """Copy the values to the CPU, unless nothing more has to be copied."""
        if not self.kept:
            self._values = _distinct(self.tensor.detach()).to("cpu", copy=True)

    def restore(self) -> None:
        """Put back what differs, and leave the version as it was."""
        tensor = self.tensor
        if self._data is not None and self._is_elsewhere(self._data):
            tensor.data = self._data
        free = torch.inference_mode() if tensor.is_inference() else torch.no_grad()
        with free, self._version or nullcontext():
            if self._values is not None and not same_bits(_distinct(tensor.detach()).cpu(), self._values):
                _distinct(tensor).copy_(self._values)
        if self._leaf:
            if not tensor.is_leaf and not tensor._is_view():
                tensor.detach_()
            if tensor.requires_grad != self._requires_grad:
                tensor.requires_grad_(self._requires_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad

    def _is_elsewhere(self, data: torch.Tensor) -> bool:
        return self.tensor.device != data.device or not self.tensor.data.is_set_to(data)


def tensor_states(values: Iterable[Any], missed: list[Exception]) -> dict[int, TensorState]:
    """The state of every tensor among some values, by its ``id``; ``missed`` takes the errors."""
    found = (value for value in values if isinstance(value, torch.Tensor))
    return {id(state.tensor): state for state in attempt(TensorState, found, missed)}


def cheapest(states: Iterable[TensorState], room: int) -> Iterator[TensorState]:
    """What is cheap to copy: the smallest tensors that ``room`` bytes have space for."""
    for state in sorted(states, key=lambda state: state.bytes):
        if (room := room - state.bytes) < 0:
            break
        yield state


def _is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer))


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, an expanded dimension cut to the one element that it has in memory."""
    if tensor.layout is torch.strided:
        for dimension, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dimension] > 1:
                tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, whatever their strides; ``False`` where torch can't say."""
    if one.layout is not torch.strided or one.shape != other.shape or one.dtype != other.dtype:
        return False
    try:
        return torch.equal(_bits(one), _bits(other))
    except (RuntimeError, NotImplementedError):  # quantized tensors and other subclasses
        return False


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().view(_INTEGERS[tensor.element_size()])


class CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies the values of a watched tensor just before an operation writes to its memory, by any alias."""

    supports_higher_order_operators = True

    def __init__(self, states: Iterable[TensorState]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched: defaultdict[int, list[TensorState]] = defaultdict(list)
        for state in states:
            self._watched[_memory(state.tensor)].append(state)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in _written(func, args, kwargs or {}):
            for state in self._watched.pop(_memory(tensor), ()):
                state.keep_values()
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # no storage of its own, such as a sparse tensor
        return id(tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation's schema says it writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, torch.Tensor):
                    yield item
