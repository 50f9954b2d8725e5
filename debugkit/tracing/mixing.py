"""Where the rows of a batch first touch each other, and whether values flow from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.tracing.cuts import tensors_in
from debugkit.tracing.dropout import bound
from debugkit.tracing.source import user_location

_MOST_KEPT = 2**24
_LOOKUPS = (F.embedding, F.one_hot, F.embedding_bag)


@dataclass(frozen=True)
class Touch:
    """The first operation in whose result a row moved although only other rows were changed.

    Attributes:
        op: its name, such as ``softmax``.
        module: dotted name of the module in whose forward it ran; empty for the model itself.
        location: the user's source line.
        batch_statistics: whether it is a normalisation over the batch.
    """

    op: str
    module: str
    location: str | None
    batch_statistics: bool = False


@dataclass(frozen=True, eq=False)
class _Seen:
    op: str
    module: str
    location: str | None
    batch_statistics: bool
    values: torch.Tensor = field(repr=False)


class RowWatch(TorchFunctionMode):
    """Keeps one row of each result that has a row per sample.

    Args:
        rows: how many samples there are.
        row: which of them to keep.
    """

    def __init__(self, rows: int, row: int) -> None:
        super().__init__()
        self.seen: list[_Seen] = []
        self.stack: list[str] = []
        self._rows, self._row, self._room = rows, row, _MOST_KEPT

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__" or self._room <= 0:
            return result
        for tensor in tensors_in((result,), {}):
            if tensor.ndim < 1 or len(tensor) != self._rows or not tensor.is_floating_point():
                continue
            if tensor.layout is not torch.strided or tensor.is_meta:
                continue
            kept = tensor.detach()[self._row].clone()
            self._room -= kept.numel()
            module = self.stack[-1] if self.stack else ""
            statistics = func is F.batch_norm and bool(bound(func, args, kwargs)["training"])
            self.seen.append(_Seen(name, module, user_location(outer=True), statistics, kept))
        return result

    @contextmanager
    def inside(self, model: torch.nn.Module) -> Iterator[None]:
        """Watch what the model computes, module by module."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self.stack.append(name)

    def _leave(self, *_: Any) -> None:
        if self.stack:
            self.stack.pop()


def first_touch(before: RowWatch, after: RowWatch, tolerance: float) -> Touch | None:
    """The first result whose kept row moved between two runs of the same program."""
    for one, other in zip(before.seen, after.seen, strict=False):
        if one.op != other.op or one.values.shape != other.values.shape:
            return None
        difference = (one.values.float() - other.values.float()).abs().nan_to_num(0.0)
        size = one.values.float().abs().nan_to_num(0.0, 0.0, 0.0)
        if difference.numel() and float(difference.max()) > tolerance * (float(size.max()) or 1.0):
            return Touch(one.op.rstrip("_"), one.module, one.location, one.batch_statistics)
    return None


class Leaves(TorchFunctionMode):
    """Makes looked-up vectors the start of a graph, so that gradients tell which of them an output depends on.

    Args:
        rows: how many samples there are.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []
        self._rows = rows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _LOOKUPS or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        if result.ndim >= 2 and len(result) == self._rows:
            result = result.detach().requires_grad_()
            self.found.append(result)
        return result


def value_flows(output: torch.Tensor, leaves: list[torch.Tensor], own: int) -> bool | None:
    """Whether an output's row changes with the values of other rows, by its gradient.

    Args:
        output: ``[rows, ...]`` with a graph.
        leaves: what the graph starts from, each ``[rows, ...]``.
        own: the output's row.

    Returns:
        ``None`` where the row does not even depend on its own values, so that gradients tell nothing.
    """
    if not output.requires_grad or not leaves:
        return None
    row = output[own].flatten()
    weights = torch.cos(torch.arange(len(row), device=row.device, dtype=torch.float32)).to(row.dtype)
    total = (torch.where(row.isfinite(), row, 0.0) * weights).sum()
    grads = [grad for grad in torch.autograd.grad(total, leaves, allow_unused=True) if grad is not None]
    if not any(bool(grad[own].any()) for grad in grads):
        return None
    return any(bool(grad[:own].any()) or bool(grad[own + 1 :].any()) for grad in grads)
