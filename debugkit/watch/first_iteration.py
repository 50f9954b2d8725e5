"""The first iteration of a loop, taken down from its batch to its loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import tensors
from debugkit.sandbox import is_measuring
from debugkit.state.randomness import Randomness
from debugkit.tracing.tape import Entry, Tape
from debugkit.watch.places import line_at_work

_MODES: Any = torch.overrides
_KEPT_BATCHES = 3
_KEPT_CALLS = 1_000
_RETURNED = 8


@dataclass
class SeenBatch:
    """A batch that a loader gave.

    Attributes:
        loader: the loader.
        batch: the batch.
        leaves: the ids of its tensors.
        begins: how many calls had been taken down before.
    """

    loader: Any
    batch: Any
    begins: int
    leaves: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.leaves = frozenset(id(tensor) for _, tensor in tensors(self.batch))


@dataclass(frozen=True)
class Taken:
    """One call that was taken down.

    Attributes:
        entry: the call; of a module, the module is its ``func``.
        line: the user's line.
        random: the random generators before a module ran.
    """

    entry: Entry
    line: tuple[str, int] | None
    random: Randomness | None = None


@dataclass
class FirstIteration:
    """What ran up to the first backward: calls of torch functions, and outermost calls of modules as one call each.

    It looks only between a batch, or the first call of a module with parameters, and the backward; nothing looks on
    while a module is at work.

    Attributes:
        calls: what ran, oldest first.
        batches: the latest batches, oldest first: some wrappers of loaders read one ahead.
        loss: what the first backward was called on, before a scaler scaled it.
    """

    calls: list[Taken] = field(default_factory=list)
    batches: deque[SeenBatch] = field(default_factory=lambda: deque(maxlen=_KEPT_BATCHES))
    loss: torch.Tensor | None = None
    _alive: bool = True
    _returned: int = 0

    def __post_init__(self) -> None:
        self._mode = _Mode(self)

    @property
    def alive(self) -> bool:
        """Whether it still looks on."""
        return self._alive

    def batch(self, loader: Any, batch: Any) -> None:
        """A loader gave a batch."""
        if not self._alive:
            return
        if len(self.batches) == _KEPT_BATCHES:
            begins = self.batches[1].begins
            del self.calls[:begins]
            for seen in self.batches:
                seen.begins -= begins
        self.batches.append(SeenBatch(loader, batch, len(self.calls)))
        self._begin()

    def module(self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Run an outermost call of a module."""
        if not self._alive:
            return original(module, *args, **kwargs)
        depth, random = self._pause(), Randomness()
        try:
            output = original(module, *args, **kwargs)
        except BaseException:
            self.forget()
            raise
        if depth is not None:
            self._push(depth)
        self._take(module, args, kwargs, output, random)
        if next(module.parameters(), None) is not None:
            self._begin()
        return output

    def ends(self, loss: torch.Tensor | None) -> None:
        """The first backward begins."""
        self._pause()
        self._alive = False
        self.loss = loss

    def passed_by(self) -> None:
        """Gradients are computed that are returned: a loop that has only these has no first iteration."""
        self._returned += 1
        if self._returned > _RETURNED:
            self.forget()

    def forget(self) -> bool:
        """Look no more, and let everything go; whether the mode is off the stack.

        It is not while one of the functions that it sees is at work, such as ``Tensor.backward``: ask again then.
        """
        self._pause()
        self._alive, self.loss = False, None
        self.calls.clear()
        self.batches.clear()
        return not self._mode.at_work

    def _begin(self) -> None:
        if not _depths(self._mode):
            self._push(0)

    def _pause(self) -> int | None:
        """Take the mode from the stack; how many were above it."""
        if not (found := _depths(self._mode)):
            return None
        above = [_MODES._pop_mode() for _ in range(found[0])]
        _MODES._pop_mode()
        for mode in reversed(above):
            _MODES._push_mode(mode)
        return found[0]

    def _push(self, depth: int) -> None:
        above = [_MODES._pop_mode() for _ in range(depth)]
        _MODES._push_mode(self._mode)
        for mode in reversed(above):
            _MODES._push_mode(mode)

    def _take(self, func: Any, args: Any, kwargs: Any, result: Any, random: Randomness | None = None) -> None:
        if len(self.calls) >= _KEPT_CALLS:
            del self.calls[0]
            for seen in self.batches:
                seen.begins = max(0, seen.begins - 1)
        tape = Tape()
        tape.record(func, args, kwargs, result)
        self.calls.append(Taken(tape.entries[0], line_at_work(), random))


class _Mode(TorchFunctionMode):
    def __init__(self, first: FirstIteration) -> None:
        super().__init__()
        self._first = first
        self.at_work = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.at_work += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self.at_work -= 1
        taken = result is None or next(tensors(result), None) is not None
        if taken and self._first.alive and not is_measuring():
            self._first._take(func, args, kwargs, result)
        return result


def _depths(mode: _Mode) -> list[int]:
    """How many modes are above this one on the stack; empty if it isn't there."""
    stack = _MODES._get_current_function_mode_stack()
    return [len(stack) - 1 - place for place, one in enumerate(stack) if one is mode][:1]
