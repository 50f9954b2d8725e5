"""Following saved states and graphs that stay alive."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from debugkit.probes.loop_record import GraphLog, StateLog
from debugkit.watch.loss_track import Line
from debugkit.watch.places import line_at_work, shown

_DEPTH = 3
_MARKS = 64
_CYCLE = 512
MARK = "debugkit"


@dataclass
class _Taken:
    """A state dict, its model, and where it was taken."""

    state: weakref.ref[Any]
    model: weakref.ref[torch.nn.Module]
    line: Line
    step: int


class StateTrack:
    """State dicts that share their tensors with a model that trains on."""

    def __init__(self) -> None:
        self.count = 0
        self._taken: deque[_Taken] = deque(maxlen=64)
        self._found: list[StateLog] = []

    def taken(self, model: torch.nn.Module, state: object, step: int) -> None:
        """A model gave its state."""
        self.count += 1
        try:
            held = weakref.ref(state)
        except TypeError:
            return
        self._taken.append(_Taken(held, weakref.ref(model), line_at_work(), step))

    def used(self, value: object, by: torch.nn.Module | None, step: int, trained: frozenset[int]) -> None:
        """A state is loaded by a model, or saved alone or inside of a mapping (``by`` is ``None``).

        It is a snapshot of nothing if the model that it was taken from has been trained since, in place.
        """
        if by is not None and isinstance(value, Mapping):
            self._loaded_back(value, by, step, trained)
        inside = [value, *value.values()] if isinstance(value, Mapping) else [value]
        for taken in self._taken:
            state, model = taken.state(), taken.model()
            if state is None or model is None or step <= taken.step or len(self._found) >= 50:
                continue
            if not any(part is state for part in inside) or (by is not None and by is not model):
                continue
            live = {p.data_ptr() for p in model.parameters() if id(p) in trained and p.numel()}
            if live & _addresses(state):
                how: Literal["loaded", "saved"] = "loaded" if by is not None else "saved"
                kind, location = type(model).__name__, shown(line_at_work())
                self._found.append(StateLog(kind, shown(taken.line), taken.step, how, step, location))

    def _loaded_back(
        self, state: Mapping[Any, Any], model: torch.nn.Module, step: int, trained: frozenset[int]
    ) -> None:
        """A mapping made of an earlier state, such as a shallow copy, whose tensors are the model's own still."""
        taken = [one for one in self._taken if one.model() is model]
        if not taken or taken[-1].step >= step or any(one.state() is state for one in taken):
            return
        live = {p.data_ptr() for p in model.parameters() if id(p) in trained and p.numel()}
        if live and live <= _addresses(state) and len(self._found) < 50:
            kind, location = type(model).__name__, shown(line_at_work())
            self._found.append(
                StateLog(kind, shown(taken[-1].line), taken[-1].step, "loaded", step, location)
            )

    def logs(self) -> tuple[StateLog, ...]:
        """The states that were used after the tensors that they share were trained on."""
        return tuple(self._found)


def _addresses(state: object) -> set[int]:
    values = state.values() if isinstance(state, Mapping) else ()
    return {
        value.data_ptr()
        for value in values
        if type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
    }


class _Sentinel:
    """Lives as long as the graph node that it was put on."""

    __slots__ = ("__weakref__",)


class GraphTrack:
    """Whether the graphs of one line outlive their step.

    A mark is put on the last nodes of a graph. It is freed with them, and means nothing to anybody else.
    """

    def __init__(self, line: Line, *, evaluation: bool) -> None:
        self.line = line
        self.evaluation = evaluation
        self.seen = 0
        self.made = 0
        self._marks: deque[list[weakref.ref[_Sentinel]]] = deque(maxlen=_MARKS)

    def mark(self, output: torch.Tensor) -> None:
        """Mark the graph that a tensor is the end of: of the first 64, and of the first 64 of every 512."""
        self.seen += 1
        if self.seen % _CYCLE > _MARKS:
            return
        node: Any = output.grad_fn
        marks = []
        for _ in range(_DEPTH):
            metadata = getattr(node, "metadata", None)
            if metadata is None or hasattr(node, "variable"):
                break
            sentinel = _Sentinel()
            metadata[MARK] = sentinel
            marks.append(weakref.ref(sentinel))
            following = [step for step, _ in node.next_functions if step is not None]
            if len(following) != 1:
                break
            node = following[0]
        if marks:
            self.made += 1
            self._marks.append(marks)

    def log(self) -> GraphLog:
        """How many marked graphs are alive."""
        alive = [any(mark() is not None for mark in marks) for marks in self._marks]
        run = next((index for index, lives in enumerate(reversed(alive)) if not lives), len(alive))
        return GraphLog(shown(self.line), self.made, sum(alive), run, self.evaluation)
