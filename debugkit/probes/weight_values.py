"""What the values of a model's tensors are: not finite, or too small to be normal numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn.parameter import is_lazy

from debugkit.checkpoints.checkpoint import Checkpoint
from debugkit.errors import Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.target import Target

_CHUNK = 2**24
LATE = "not reached in the time given"
_DENORMAL_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class OddValues:
    """A parameter or buffer that holds NaN, infinity or denormal numbers.

    Attributes:
        name: dotted name.
        is_parameter: whether it is a parameter; a buffer else.
        trainable: whether it requires a gradient.
        shape: its shape.
        values: how many values it has.
        nan: how many are NaN.
        plus: how many are infinity.
        minus: how many are minus infinity.
        first: index of the first value that is not finite; ``None`` where all are.
        levels: how many distinct finite values there are (3 stands for more than 2).
        denormal: how many are denormal.
    """

    name: str
    is_parameter: bool
    trainable: bool
    shape: tuple[int, ...]
    values: int
    nan: int
    plus: int
    minus: int
    first: tuple[int, ...] | None
    levels: int
    denormal: int

    @property
    def unbounded(self) -> int:
        """How many values are not finite."""
        return self.nan + self.plus + self.minus


@dataclass(frozen=True)
class WeightValues:
    """The floating-point values of all parameters and buffers.

    Attributes:
        odd: the tensors with values that are not finite or are denormal, in the model's order.
        tensors: how many tensors were read.
        values: how many values they hold.
        unread: how many tensors could not be read, by reason.
    """

    cost: ClassVar[Cost] = "static"
    odd: tuple[OddValues, ...]
    tensors: int
    values: int
    unread: Mapping[str, int] = field(repr=False)

    @staticmethod
    def collect(target: Target | None, checkpoint: Checkpoint | None, deadline: Deadline) -> WeightValues:
        """Read every tensor once, a part of it at a time; of a checkpoint as many as the time allows.

        Raises:
            Unavailable: there is neither a model nor a checkpoint.
        """
        if target is not None:
            return _values_of(_named_tensors(target.model))
        if checkpoint is None:
            raise Unavailable("there is neither a model nor a checkpoint; pass Target(model)")
        return _values_of(_stored_tensors(checkpoint), deadline)


def _values_of(
    tensors: Iterable[tuple[str, torch.Tensor, bool]], deadline: Deadline | None = None
) -> WeightValues:
    odd: list[OddValues] = []
    unread: dict[str, int] = {}
    count = values = 0
    for name, tensor, is_parameter in tensors:
        late = deadline is not None and count and not deadline.seconds_left
        held = LATE if late else _plain(tensor)
        if isinstance(held, str):
            unread[held] = unread.get(held, 0) + 1
            continue
        count += 1
        values += held.numel()
        if (found := _look(name, tensor, held, is_parameter)) is not None:
            odd.append(found)
    return WeightValues(tuple(odd), count, values, unread)


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    yield from ((name, parameter, True) for name, parameter in model.named_parameters())
    yield from ((name, buffer, False) for name, buffer in model.named_buffers())


def _stored_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The tensors of a checkpoint as frozen parameters: which of them are trained, it doesn't say."""
    for stored in checkpoint.tensors:
        if stored.is_float:
            values = stored.load()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                tensor = torch.from_numpy(values)
            yield stored.name, tensor.view(torch.bfloat16) if stored.dtype == "bfloat16" else tensor, True


def _plain(tensor: torch.Tensor) -> torch.Tensor | str:
    """The values as a dense tensor of real floating-point numbers, or why there is none."""
    if is_lazy(tensor):
        return "not initialised yet"
    if tensor.is_meta:
        return "on the meta device"
    held = tensor.detach()
    if type(held.data) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return "packed by a library"
    if held.is_quantized:
        return "quantised"
    if held.layout is torch.sparse_coo:
        held = held.coalesce().values()
    elif held.layout is not torch.strided:
        try:
            held = held.values()
        except RuntimeError:
            return "in a layout that torch can't read"
    if held.is_complex():
        held = torch.view_as_real(held.resolve_conj())
    if not held.is_floating_point():
        return "whole numbers"
    return held if held.element_size() > 1 else held.to(torch.float32)


@torch.no_grad()
def _look(name: str, tensor: torch.Tensor, held: torch.Tensor, is_parameter: bool) -> OddValues | None:
    nan = plus = minus = denormal = 0
    first: int | None = None
    levels: set[float] = set()
    tiny = torch.finfo(held.dtype).tiny
    flat = held.reshape(-1) if held.is_contiguous() else held.contiguous().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        if held.dtype in _DENORMAL_DTYPES:
            denormal += int(((part != 0) & (part.abs() < tiny)).sum())
        finite = part.isfinite()
        if bool(finite.all()):
            if first is not None and len(levels) < 3:
                levels |= _levels(part)
            continue
        if first is None:
            first = start + int((~finite).nonzero()[0])
        nan += int(part.isnan().sum())
        plus += int((part == float("inf")).sum())
        minus += int((part == float("-inf")).sum())
        if len(levels) < 3:
            levels |= _levels(part[finite])
    if first is None and not denormal:
        return None
    return OddValues(
        name=name,
        is_parameter=is_parameter,
        trainable=tensor.requires_grad,
        shape=tuple(tensor.shape),
        values=flat.numel(),
        nan=nan,
        plus=plus,
        minus=minus,
        first=None if first is None else _index(first, tuple(held.shape)),
        levels=min(3, len(levels)),
        denormal=denormal,
    )


def _levels(values: torch.Tensor) -> set[float]:
    """Up to three distinct values."""
    distinct: torch.Tensor = values.unique()  # type: ignore[no-untyped-call]
    return set(distinct[:3].tolist())


def _index(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for size in reversed(shape):
        position, remainder = divmod(position, size)
        found.append(remainder)
    return tuple(reversed(found))
