"""The state of plain Python objects: what hangs on some roots, and how to put it back.

Attributes, container contents, closures, private random generators, small arrays and file positions can be
put back. What a generator has yielded can't; see :func:`one_way`.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import io
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from debugkit.tracing.source import is_library_file

DEPTH = 5
_MOST_FOUND = 1_000_000
_MOST_COPIED = 1_000_000
_LARGEST_ARRAY = 2**20

_CONTAINERS = (dict, list, set, deque)
_LEAVES = (bool, int, float, complex, str, bytes, type, types.ModuleType, type(None))
_KNOWN = frozenset({"torch", "torchvision", "transformers", "accelerate", "peft", "functools"})

Undo = Callable[[], object]


class Snapshot:
    """What some values hold now.

    Args:
        values: objects, containers, functions, generators, arrays; each is kept without what it refers to.

    Attributes:
        missed: the errors of values that could not be read.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.missed: list[Exception] = []
        found = attempt(lambda value: [*_undos(value)], values, self.missed)
        self._undo = [undo for undos in found for undo in undos]

    def restore(self) -> None:
        """Rebind, refill and rewind what differs; what is as before is not touched.

        Raises:
            ExceptionGroup: what could not be put back, after everything else was.
        """
        run_all(self._undo)


class Attributes(Snapshot):
    """The attributes of one object, the contents of its containers, the state of its generators."""

    def __init__(self, owner: Any) -> None:
        held = [
            v for v in vars(owner).values() if isinstance(v, _CONTAINERS) or _generator_state(v) is not None
        ]
        super().__init__([owner, *held])


def attempt(function: Callable[[Any], Any], values: Iterable[Any], failures: list[Exception]) -> list[Any]:
    """``function`` of each value; what it raises goes to ``failures`` and stops nothing."""
    results = []
    for value in values:
        try:
            results.append(function(value))
        except Exception as error:
            failures.append(error.with_traceback(None))
    return results


def run_all(actions: Iterable[Undo]) -> None:
    """Run every action, whatever the others raise.

    Raises:
        ExceptionGroup: all that was raised.
    """
    failures: list[Exception] = []
    attempt(lambda action: action(), actions, failures)
    if failures:
        raise ExceptionGroup("some actions failed", failures)


def reachable(
    *roots: Any, leave: Iterable[Any] = (), stop: tuple[type, ...] = (), most: int | None = None
) -> list[Any]:
    """Everything with a state of its own that hangs on the roots, roots included.

    A model is followed to any depth, other objects a few steps. Library objects that only a user's function
    knows (loggers, progress bars, clients of services) are left alone.

    Args:
        roots: where to start.
        leave: values that are left out, with what hangs on them alone.
        stop: types that are found but not looked into.
        most: how many items of a container to look into; all by default.
    """
    seen = {id(value): value for value in leave}
    found: list[Any] = []
    queue = deque((root, 0, True) for root in roots)
    while queue and len(found) < _MOST_FOUND:
        value, depth, trusted = queue.popleft()
        if id(value) in seen or isinstance(value, _LEAVES) or not (trusted or _is_followed(value)):
            continue
        seen[id(value)] = value
        found.append(value)
        if depth < DEPTH and not isinstance(value, stop):
            module = isinstance(value, torch.nn.Module)
            trusted = (trusted or module) and not isinstance(value, types.FunctionType)
            with contextlib.suppress(Exception):  # a container of the user's that can't be read
                queue.extend((child, 1 if module else depth + 1, trusted) for child in _children(value, most))
    return found


def one_way(values: Iterable[Any]) -> list[str]:
    """The kinds of iterators among some values that reading uses up, such as ``generator``."""
    return [
        type(value).__name__
        for value in values
        if hasattr(type(value), "__next__")
        and _attributes_of(value) is None
        and _generator_state(value) is None
        and not isinstance(value, io.IOBase)
    ]


def _is_followed(value: Any) -> bool:
    if isinstance(value, (*_CONTAINERS, tuple, torch.Tensor, np.ndarray, torch.nn.Module)):
        return True
    if isinstance(value, torch.optim.Optimizer) or _generator_state(value) is not None:
        return True
    if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinMethodType)):
        return True
    package = type(value).__module__.partition(".")[0]
    file = getattr(sys.modules.get(type(value).__module__), "__file__", None)
    return package in _KNOWN or package == "__main__" or (file is not None and not is_library_file(file))


def _children(value: Any, most: int | None) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from islice(value.values(), most)
    elif isinstance(value, (*_CONTAINERS, tuple)):
        yield from islice(value, most)
    elif isinstance(value, types.FunctionType):
        yield from _referenced(value)
    elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        yield from (value.__self__, getattr(value, "__func__", None))
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, torch.Tensor) and value.is_leaf:
        yield value.grad
    for name, child in (_attributes_of(value) or {}).items():
        if name != "_iterator" or not isinstance(value, torch.utils.data.DataLoader):
            yield child


def _referenced(function: types.FunctionType) -> Iterator[Any]:
    """What a user's function knows: its closure, its defaults, the globals that it names."""
    if is_library_file(function.__code__.co_filename):
        return
    yield from (contents for _, contents in _cells(function))
    yield from (function.__defaults__, function.__kwdefaults__)
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    yield from (function.__globals__[name] for name in sorted(names) if name in function.__globals__)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _cells(function: types.FunctionType) -> Iterator[tuple[types.CellType, Any]]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell, cell.cell_contents


def _undos(value: Any) -> Iterator[Undo]:
    if isinstance(value, _CONTAINERS):
        if len(value) <= _MOST_COPIED:
            yield _undo_contents(value)
    elif isinstance(value, types.FunctionType):
        yield from _undo_bindings(value)
    elif isinstance(value, np.ndarray):
        if value.nbytes <= _LARGEST_ARRAY and value.flags.writeable:
            yield functools.partial(_write_array, value, value.copy())
    elif isinstance(value, io.IOBase):
        with contextlib.suppress(OSError, ValueError):
            if value.seekable():
                yield functools.partial(_seek, value, value.tell())
    elif (state := _generator_state(value)) is not None:
        yield functools.partial(_set_generator_state, value, state)
    if _attributes_of(value) is not None:
        yield _undo_attributes(value)


def _attributes_of(value: Any) -> dict[str, Any] | None:
    """``vars(value)`` of an instance, without running any code of its class."""
    if isinstance(value, _LEAVES):
        return None
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def _undo_attributes(owner: Any) -> Undo:
    kind, saved = type(owner), dict(_attributes_of(owner) or {})

    def undo() -> None:
        if type(owner) is not kind:
            owner.__class__ = kind
        attributes = _attributes_of(owner)
        if attributes is not None and not _same(attributes, saved):
            _close_workers(attributes, saved)
            attributes.clear()
            attributes.update(saved)

    return undo


def _undo_contents(container: Any) -> Undo:
    saved = dict(container) if isinstance(container, dict) else list(container)

    def undo() -> None:
        if not _same(container, saved):
            container.clear()
            (container.update if isinstance(container, (dict, set)) else container.extend)(saved)

    return undo


def _undo_bindings(function: types.FunctionType) -> Iterator[Undo]:
    if is_library_file(function.__code__.co_filename):
        return
    for cell, contents in _cells(function):
        yield functools.partial(setattr, cell, "cell_contents", contents)
    for code in _codes(function.__code__):
        for name in {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}:
            if name in function.__globals__:
                yield functools.partial(function.__globals__.__setitem__, name, function.__globals__[name])


def _same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        pairs = zip(now.items(), before.items(), strict=True)
        return all(a[0] is b[0] and a[1] is b[1] for a, b in pairs)
    if isinstance(now, set):
        return now == set(before)
    return all(a is b for a, b in zip(now, before, strict=True))


def _write_array(array: np.ndarray[Any, Any], saved: np.ndarray[Any, Any]) -> None:
    if array.tobytes() != saved.tobytes():
        np.copyto(array, saved)


def _seek(file: Any, position: int) -> None:
    if not file.closed:
        file.seek(position)


def _close_workers(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Stop the persistent workers that a probe started."""
    iterator = now.get("_iterator")
    stop = getattr(iterator, "_shutdown_workers", None)
    if stop is not None and iterator is not before.get("_iterator"):
        stop()


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
