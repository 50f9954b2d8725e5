"""Reading tensors of a running program without changing them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

_ELEMENTS = 256
_NODES = 500


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether reading a tensor costs no communication and means its values: dense, on one device, with data."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and (tensor.is_floating_point() or tensor.is_complex())
    )


def norms(tensors: Sequence[torch.Tensor | None]) -> list[float | None]:
    """The L2 norm of each tensor, read with one transfer per device; ``None`` without one, NaN if not plain."""
    found: list[float | None] = [None if tensor is None else math.nan for tensor in tensors]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if tensor is not None and is_plain(tensor):
            groups[tensor.device, tensor.dtype].append(index)
    for indices in groups.values():
        group = [part.detach() for index in indices if (part := tensors[index]) is not None]
        values = torch.stack(torch._foreach_norm(group)).abs().tolist()
        for index, value in zip(indices, values, strict=True):
            found[index] = value
    return found


def glimpse(tensor: torch.Tensor) -> torch.Tensor | None:
    """A copy of at most 256 elements spread over a tensor; ``None`` if it is not plain."""
    if not is_plain(tensor) or not tensor.numel():
        return None
    values = tensor.detach()
    if not values.is_contiguous():
        values = values[tuple(slice(0, 4) for _ in values.shape)]
    values = values.reshape(-1)
    return values[:: max(1, -(-values.numel() // _ELEMENTS))].clone()


def checksum(tensor: torch.Tensor) -> tuple[float, float] | None:
    """Sum and sum of squares of all elements; ``None`` if the tensor is not plain."""
    if not is_plain(tensor) or tensor.is_complex():
        return None
    values = tensor.detach()
    return float(values.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(values))


def scalar(value: object) -> torch.Tensor | None:
    """The loss in what a module returned: a number, or the entry or attribute ``loss`` that is one."""
    if not isinstance(value, torch.Tensor):
        value = value.get("loss") if isinstance(value, dict) else getattr(value, "loss", None)
    if isinstance(value, torch.Tensor) and value.numel() == 1 and is_plain(value) and not value.is_complex():
        return value
    return None


def first_leaf(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor that needs a gradient and that this one was computed from, itself included; the first that is met."""
    if tensor.is_leaf:
        return tensor
    nodes: list[Any] = [tensor.grad_fn]
    for _ in range(_NODES):
        if not nodes:
            return None
        node = nodes.pop()
        if isinstance(leaf := getattr(node, "variable", None), torch.Tensor):
            return leaf
        nodes += [step for step, _ in node.next_functions if step is not None]
    return None
