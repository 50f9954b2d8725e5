"""Numerics of a step from outside: what modules give, and how rounding moves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import tensors


@dataclass(frozen=True)
class Reading:
    """What one module gave: the largest finite magnitude, and whether some value was not finite."""

    largest: float
    finite: bool


class Draws(TorchFunctionMode):
    """Notes whether one of some functions is called.

    Args:
        names: their names.

    Attributes:
        seen: whether one was.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or getattr(func, "__name__", "") in self._names
        return func(*args, **(kwargs or {}))


@contextmanager
def rounded(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The outputs of the innermost modules, and the gradients that reach them, move by a precision's rounding."""
    eps = torch.finfo(dtype).eps

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            noise = 1 + eps * (torch.rand_like(value) - 0.5)
            if value.requires_grad and value.grad_fn is not None:
                value.register_hook(moved)  # type: ignore[no-untyped-call]
            return value * noise
        return type(value)(map(moved, value)) if type(value) in (tuple, list) else value

    hooks = [
        module.register_forward_hook(lambda module, args, output: moved(output))
        for module in model.modules()
        if not module._modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_autocast(model: nn.Module, kind: str) -> Iterator[None]:
    """The model runs without autocast, also where the step itself switches it on."""
    states: list[bool] = []

    def enter(*_: Any) -> None:
        states.append(torch.is_autocast_enabled(kind))
        torch.set_autocast_enabled(kind, False)

    def leave(*_: Any) -> None:
        torch.set_autocast_enabled(kind, states.pop())

    hooks = (model.register_forward_pre_hook(enter), model.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def readings_of(model: nn.Module) -> Iterator[dict[str, Reading]]:
    """What each module with parameters of its own gives."""
    readings: dict[str, Reading] = {}

    def reader(name: str) -> Any:
        def read(module: nn.Module, args: Any, output: Any) -> None:
            for _, value in tensors(output):
                if value.is_floating_point() and value.numel() and not value.is_meta:
                    held = value.detach()
                    finite = held.isfinite()
                    before = readings.get(name, Reading(0.0, True))
                    largest = float(held.abs().masked_fill(~finite, 0.0).amax())
                    readings[name] = Reading(
                        max(largest, before.largest), before.finite and bool(finite.all())
                    )

        return read

    weighted = [(name, module) for name, module in model.named_modules() if module._parameters]
    hooks = [module.register_forward_hook(reader(name)) for name, module in weighted]
    try:
        yield readings
    finally:
        for hook in hooks:
            hook.remove()
