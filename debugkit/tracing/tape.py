"""A tape of torch calls that can be played again with other values: what would the loss be, had the labels differed?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Entry:
    """One recorded call.

    Attributes:
        func: the torch function.
        args: its positional arguments.
        kwargs: its keyword arguments.
        result: what it returned.
        before: what the tensor that it writes to held.
        grad: whether gradients were enabled.
        device: the type of device that it ran on.
        autocast: the dtype that was autocast to; ``None`` outside autocast.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    before: torch.Tensor | None
    grad: bool
    device: str
    autocast: torch.dtype | None


class Replay:
    """The tensors of one replay by the originals that they stand for."""

    def __init__(self, given: Mapping[int, torch.Tensor]) -> None:
        self._new = dict(given)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as it is in this replay: the original where nothing changed it."""
        return self._new.get(id(tensor), tensor)

    def holds(self, value: Any) -> bool:
        """Whether a value has a tensor in it that this replay changed."""
        return any(id(tensor) in self._new for tensor in flat(value))

    def put(self, old: Any, new: Any) -> None:
        """Let new tensors stand for the old ones."""
        for one, other in zip(flat(old), flat(new), strict=False):
            self._new[id(one)] = other


class Tape:
    """Calls in the order in which they ran. It keeps all their tensors alive."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def record(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        before: torch.Tensor | None = None,
    ) -> int:
        """Add a call that has just run; gives its number."""
        device = next((tensor.device.type for tensor in flat((args, kwargs))), "cpu")
        casting = torch.is_autocast_enabled(device)
        autocast = torch.get_autocast_dtype(device) if casting else None
        entry = Entry(func, args, kwargs, result, before, torch.is_grad_enabled(), device, autocast)
        self.entries.append(entry)
        return len(self.entries) - 1

    def replay(
        self, given: Mapping[int, torch.Tensor], changed: Mapping[int, tuple[Any, ...]] | None = None
    ) -> Replay:
        """Run again every call that depends on what is changed.

        Args:
            given: tensors to put in place of others, by ``id`` of the original.
            changed: positional arguments to run single calls with, by the call's number.

        Raises:
            Exception: a call does not take the new values.
        """
        changed = changed or {}
        replay = Replay(given)
        for number, entry in enumerate(self.entries):
            args, kwargs = changed.get(number, entry.args), entry.kwargs
            if number not in changed and not replay.holds((args, kwargs)):
                continue
            target = written(entry.func, entry.args, entry.kwargs)
            if entry.before is not None and not replay.holds(target):
                replay.put(target, entry.before.clone())
            with _context(entry):
                result = entry.func(*_swapped(args, replay), **_swapped(dict(kwargs), replay))
            replay.put(entry.result, result)
        return replay


_OPERATORS = frozenset(
    {
        "__setitem__",
        "__iadd__",
        "__isub__",
        "__imul__",
        "__itruediv__",
        "__ifloordiv__",
        "__ipow__",
        "__imod__",
    }
)


def written(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """The tensor that a torch function writes to."""
    name = getattr(func, "__name__", "")
    if name not in _OPERATORS and not (name.endswith("_") and not name.endswith("__")):
        return None
    first = args[0] if args else kwargs.get("input")
    return first if isinstance(first, torch.Tensor) else None


def flat(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)


def _swapped(value: Any, replay: Replay) -> Any:
    if isinstance(value, torch.Tensor):
        return replay.of(value)
    if isinstance(value, dict):
        return {key: _swapped(item, replay) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_swapped(item, replay) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_swapped(item, replay) for item in value)
    return value


@contextmanager
def _context(entry: Entry) -> Iterator[None]:
    with torch.set_grad_enabled(entry.grad):
        if entry.autocast is None and not torch.is_autocast_enabled(entry.device):
            yield
            return
        with torch.autocast(entry.device, dtype=entry.autocast, enabled=entry.autocast is not None):
            yield
