"""The state of plain Python objects: attributes, container contents and private random generators."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_COPIED_CONTENTS = 100_000
_CONTAINERS = (dict, list, set, deque)


class Attributes:
    """The attributes of one object, the contents of its containers, the state of its generators."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._saved = dict(vars(owner))
        self._contents = [
            (value, value.copy())
            for value in self._saved.values()
            if isinstance(value, _CONTAINERS) and len(value) <= _COPIED_CONTENTS
        ]
        self._generators = [
            (value, state) for value in self._saved.values() if (state := _generator_state(value)) is not None
        ]

    def restore(self) -> None:
        """Rebind, refill and rewind what differs; what is as before is not touched."""
        attributes = vars(self._owner)
        if not _same(attributes, self._saved):
            _close_workers(attributes, self._saved)
            attributes.clear()
            attributes.update(self._saved)
        for container, contents in self._contents:
            if not _same(container, contents):
                _refill(container, contents)
        for generator, state in self._generators:
            _set_generator_state(generator, state)


def reachable(*roots: Any, depth: int = 4, limit: int = 1000) -> list[Any]:
    """The plain objects that hang on a data loader (sampler, data set, collator, ...), roots included."""
    found: dict[int, Any] = {}
    layer = list(roots)
    for _ in range(depth):
        below: list[Any] = []
        for value in layer:
            if len(found) >= limit or id(value) in found or not _is_plain(value):
                continue
            found[id(value)] = value
            for child in vars(value).values():
                below += child[:100] if isinstance(child, list) else [child]
            if isinstance(value, types.MethodType):
                below.append(value.__self__)
        layer = below
    return list(found.values())


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, (type, types.ModuleType, types.FunctionType, torch.Tensor)):
        return False
    if isinstance(value, (torch.nn.Module, torch.optim.Optimizer)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)


def _same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        pairs: Iterator[tuple[Any, Any]] = zip(now.items(), before.items(), strict=True)
        return all(a[0] is b[0] and a[1] is b[1] for a, b in pairs)
    if isinstance(now, set):
        return bool(now == before)
    return all(a is b for a, b in zip(now, before, strict=True))


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(contents)
    else:
        container.extend(contents)


def _close_workers(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Stop the persistent workers that a probe started."""
    iterator = now.get("_iterator")
    if iterator is not None and before.get("_iterator") is None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def _generator_state(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    return None


def _set_generator_state(value: Any, state: Any) -> None:
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    elif isinstance(value, random.Random):
        value.setstate(state)
    else:
        value.set_state(state)
