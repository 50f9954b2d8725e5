"""What the values of a model's tensors are: not finite, or too small to be normal numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from debugkit.checkpoints.checkpoint import Checkpoint
from debugkit.errors import Unavailable
from debugkit.evidence import Cost, Deadline
from debugkit.target import Target
from debugkit.weights.matrix import Array
from debugkit.weights.odd_values import OddValues, odd_values
from debugkit.weights.pages import blocks

if TYPE_CHECKING:
    import torch

_CHUNK = 2**20
LATE = "not reached in the time given"
WHOLE = "whole numbers"


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
            return _gather(_of_model(target.model))
        if checkpoint is None:
            raise Unavailable("there is neither a model nor a checkpoint; pass Target(model)")
        return _gather(_of_checkpoint(checkpoint, deadline))


def _gather(looks: Iterator[tuple[int, OddValues | None] | str]) -> WeightValues:
    odd: list[OddValues] = []
    unread: dict[str, int] = {}
    count = values = 0
    for look in looks:
        if isinstance(look, str):
            unread[look] = unread.get(look, 0) + 1
            continue
        count += 1
        values += look[0]
        if look[1] is not None:
            odd.append(look[1])
    return WeightValues(tuple(odd), count, values, unread)


def _of_checkpoint(
    checkpoint: Checkpoint, deadline: Deadline
) -> Iterator[tuple[int, OddValues | None] | str]:
    """The tensors of a checkpoint as frozen parameters: which of them are trained, it doesn't say."""
    begun = False
    for stored in checkpoint.tensors:
        if not stored.is_float:
            continue
        if begun and not deadline.seconds_left:
            yield LATE
            continue
        begun = True
        flat = stored.load().reshape(-1)
        yield stored.size, odd_values(stored.name, stored.shape, stored.dtype, blocks(flat, _CHUNK))


def _of_model(model: torch.nn.Module) -> Iterator[tuple[int, OddValues | None] | str]:
    parameters = dict(model.named_parameters())
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        held = _plain(tensor)
        if isinstance(held, str):
            yield held
            continue
        flat = held.reshape(-1) if held.is_contiguous() else held.contiguous().reshape(-1)
        dtype = str(held.dtype).removeprefix("torch.")
        found = odd_values(
            name,
            tuple(held.shape),
            dtype,
            _parts(flat),
            is_parameter=name in parameters,
            trainable=tensor.requires_grad,
        )
        yield held.numel(), found and replace(found, shape=tuple(tensor.shape))


def _parts(flat: torch.Tensor) -> Iterator[Array | int]:
    """Parts on the CPU; of another device only those that hold something odd."""
    import torch

    from debugkit.weights.model_matrices import values_of

    tiny = torch.finfo(flat.dtype).tiny
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        if part.device.type != "cpu" and bool((part.isfinite() & ((part == 0) | (part.abs() >= tiny))).all()):
            yield part.numel()
        else:
            yield values_of(part.resolve_neg())


def _plain(tensor: torch.Tensor) -> torch.Tensor | str:
    """The values as a dense tensor of real floating-point numbers, or why there is none."""
    import torch

    if torch.nn.parameter.is_lazy(tensor):
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
        return WHOLE
    return held if held.element_size() > 1 else held.to(torch.float32)
