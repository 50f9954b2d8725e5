"""The latest outermost calls of modules, as long as a loss that is computed from them may come."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from debugkit.data.batch import tensors

_KEPT = 8


@dataclass(frozen=True)
class SeenCall:
    """One call.

    Attributes:
        module: the module, held weakly.
        args: what it was called with.
        kwargs: the same, by name.
        precision: device type and type that it autocast to; ``None`` without.
    """

    module: weakref.ref[torch.nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    precision: tuple[str, torch.dtype] | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that it ran in."""
        return nullcontext() if self.precision is None else torch.autocast(*self.precision)


class LatestCalls:
    """The calls since the latest backward, at most 8."""

    def __init__(self) -> None:
        self._calls: deque[SeenCall] = deque(maxlen=_KEPT)

    def __iter__(self) -> Iterator[SeenCall]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module was called."""
        self._calls.append(SeenCall(weakref.ref(module), args, kwargs, _precision(args, kwargs)))

    def clear(self) -> None:
        """Nothing more will be computed from them."""
        self._calls.clear()


def _precision(args: Any, kwargs: Any) -> tuple[str, torch.dtype] | None:
    tensor = next((tensor for _, tensor in tensors((args, kwargs))), None)
    kind = tensor.device.type if tensor is not None else "cpu"
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return kind, torch.get_autocast_dtype(kind)
