"""Cuts: the places where a value leaves the autograd graph, and whose code made them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch

from debugkit.tracing.graph import Node, gradient_edge
from debugkit.tracing.source import is_library_call, user_location

_LEAVES_GRAPH = frozenset({"item", "tolist", "numpy", "__array__", "__float__", "__int__"})
_MOST_CUTS = 4000


@dataclass(frozen=True)
class Cut:
    """A place where a value that carried a gradient was used without one.

    Attributes:
        op: the function, such as ``detach``, ``argmax`` or ``linear`` (under ``no_grad``).
        grad_enabled: whether gradients were enabled there.
        location: the user's source line.
        module: dotted name of the module in whose forward it happened.
        checkpointed: whether it happened inside reentrant activation checkpointing.
        sampled: whether a distribution of ``torch.distributions`` drew a sample there.
        in_library: whether an installed package made the cut, and not the user's own code.
        to_loss: whether the value went straight into a loss, as the target of a stop-gradient does.
        nodes: the autograd nodes of the values that lost their gradient.
    """

    op: str
    grad_enabled: bool
    location: str | None
    module: str | None
    checkpointed: bool
    sampled: bool
    in_library: bool
    to_loss: bool = False
    nodes: tuple[Node, ...] = field(repr=False, default=())


class CutWatch:
    """Collects the cuts of one step."""

    def __init__(self) -> None:
        self._cuts: list[Cut] = []
        self._results: dict[int, tuple[int, weakref.ref[torch.Tensor]]] = {}
        self._to_loss: set[int] = set()

    def see(
        self,
        op: str,
        result: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        module: str | None,
        disabled_in_library: bool,
    ) -> None:
        """Look at one call of a torch function.

        Args:
            op: its name.
            result: what it returned.
            args: positional arguments.
            kwargs: keyword arguments.
            module: the module whose forward is running.
            disabled_in_library: whether a library's module switched gradients off, where they are off.
        """
        results = list(tensors_in((result,), {}))
        if any(value.requires_grad for value in results) or not (results or op in _LEAVES_GRAPH):
            return
        carriers = [value for value in tensors_in(args, kwargs) if value.requires_grad]
        if not carriers or len(self._cuts) >= _MOST_CUTS:
            return
        enabled = torch.is_grad_enabled()
        around = set() if enabled else _around_no_grad()
        if "function" in around and "checkpoint" not in around:
            return
        for value in results:
            self._results[id(value)] = (len(self._cuts), weakref.ref(value))
        nodes = (gradient_edge(value) for value in carriers)
        self._cuts.append(
            Cut(
                op=op,
                grad_enabled=enabled,
                location=user_location(outer=True),
                module=module,
                checkpointed="checkpoint" in around,
                sampled="distribution" in around,
                in_library=is_library_call() if enabled else disabled_in_library,
                nodes=tuple(node for node in nodes if node is not None),
            )
        )

    def see_loss(self, values: Iterable[Any]) -> None:
        """Remember which cut values a loss was given."""
        for value in values:
            index, known = self._results.get(id(value), (-1, None))
            if known is not None and known() is value:
                self._to_loss.add(index)

    def cuts(self) -> tuple[Cut, ...]:
        """All cuts, in order."""
        return tuple(replace(cut, to_loss=index in self._to_loss) for index, cut in enumerate(self._cuts))


def tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of a call, also one level down in lists and tuples."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor))


def _around_no_grad() -> set[str]:
    """What of torch stands on the stack and switches gradients off by itself."""
    found: set[str] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file, name = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
        if file.endswith("torch/utils/checkpoint.py") and name == "forward":
            found.add("checkpoint")
        elif file.endswith("torch/autograd/function.py") and name == "apply":
            found.add("function")
        elif "torch/distributions/" in file and name == "sample":
            found.add("distribution")
        frame = frame.f_back
    return found
