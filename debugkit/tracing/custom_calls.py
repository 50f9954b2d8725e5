"""Calls of the user's own ``torch.autograd.Function`` classes, with what they were given.

Such calls pass no ``torch.overrides`` mode, so the interpreter's profile hook sees them: nothing is replaced, and the
hook that was there before comes back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from debugkit.tracing.source import is_library_class

_APPLY: Any = getattr(torch.autograd.Function.apply, "__func__", torch.autograd.Function.apply).__code__
_MOST_VALUES = 2**22


@dataclass(frozen=True, eq=False)
class CustomCall:
    """The first call of a function.

    Attributes:
        function: the class.
        args: copies of what it was given; ``None`` where that was too large.
    """

    function: Any
    args: tuple[Any, ...] | None


@contextmanager
def custom_calls() -> Iterator[list[CustomCall]]:
    """Record the first call of each of the user's functions."""
    found: list[CustomCall] = []
    seen: set[Any] = set()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        above = frame.f_back
        if event != "call" or above is None or above.f_code is not _APPLY:
            return
        function, args = above.f_locals.get("cls"), above.f_locals.get("args")
        if function is None or args is None or function in seen or is_library_class(function):
            return
        seen.add(function)
        small = sum(one.numel() for one in args if isinstance(one, torch.Tensor)) <= _MOST_VALUES
        found.append(CustomCall(function, tuple(map(_copy, args)) if small else None))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_meta:
        return value
    with torch.no_grad():
        return value.detach().clone().requires_grad_(value.requires_grad and value.is_floating_point())
