"""Which hooks stay in a probe pass: those that the model's computation depends on.

Hooks that libraries install (weight norm, pruning, device placement) compute; hooks that a person adds
mostly look. A person's hook is kept out unless its code can return a value or names an in-place operation,
since only those change the pass. A hook on a tensor stays only where a person's code computes a new gradient
and nothing else: others store, send or apply gradients, and some step an optimizer.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch

from debugkit.state.objects import reachable
from debugkit.tracing.source import is_library_file

_MODULE_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_BEYOND_THE_GRADIENT = frozenset({"grad", "data", "step", "no_grad", "dist", "distributed", "all_reduce"})
_OBSERVING_CALLS = frozenset(
    {
        "append",
        "appendleft",
        "add",
        "update",
        "extend",
        "setdefault",
        "setattr",
        "__setitem__",
        "write",
        "print",
        "info",
        "log",
    }
)


@contextmanager
def quiet_hooks(modules: Iterable[torch.nn.Module], tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Take the hooks that do not compute out of all modules and tensors; then put them back."""
    emptied: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []

    def take_out(hooks: MutableMapping[Any, Any] | None, keep: Callable[[Any], bool]) -> None:
        if hooks:
            emptied.append((hooks, dict(hooks)))
            for key in [key for key, hook in hooks.items() if not keep(hook)]:
                del hooks[key]

    try:
        for name in _MODULE_HOOKS:
            take_out(getattr(torch.nn.modules.module, f"_global{name}", None), is_structural)
            for module in modules:
                take_out(getattr(module, name, None), is_structural)
        for tensor in tensors:
            take_out(tensor._backward_hooks, edits_gradient)
            take_out(getattr(tensor, "_post_accumulate_grad_hooks", None), lambda hook: False)
        yield
    finally:
        for hooks, contents in emptied:
            hooks.clear()
            hooks.update(contents)


def is_structural(hook: Any) -> bool:
    """Whether a module hook may change what the module computes."""
    function = _function(hook)
    return function is not None and (is_library_file(function.__code__.co_filename) or _computes(function))


def edits_gradient(hook: Any) -> bool:
    """Whether a tensor hook is a person's own that computes a gradient from the gradient, and does no more."""
    function = _function(hook)
    if function is None or is_library_file(function.__code__.co_filename) or not _computes(function):
        return False
    held = reachable(hook, stop=(torch.nn.Module, torch.optim.Optimizer), most=100)
    return _BEYOND_THE_GRADIENT.isdisjoint(function.__code__.co_names) and not any(
        isinstance(value, torch.optim.Optimizer) for value in held
    )


def _function(hook: Any) -> types.FunctionType | None:
    """The Python function behind a hook, where there is one."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = inspect.unwrap(hook) if callable(hook) else hook
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        function = inspect.getattr_static(type(function), "__call__", None)
    return function if inspect.isfunction(function) else None


def _computes(function: types.FunctionType) -> bool:
    in_place = any(re.fullmatch(r"[a-z]\w*[^_]_", name) for name in function.__code__.co_names)
    return in_place or _returns_value(function)


def _returns_value(function: Any) -> bool:
    """Whether a function's code can return something other than ``None``."""
    instructions = [i for i in dis.get_instructions(function) if i.opname not in ("CACHE", "RESUME", "NOP")]
    for before, instruction in zip([None, *instructions], instructions, strict=False):
        if instruction.opname == "RETURN_CONST":
            if instruction.argval is not None:
                return True
        elif instruction.opname == "RETURN_VALUE":
            if before is not None and before.opname == "LOAD_CONST" and before.argval is None:
                continue
            if function.__name__ == "<lambda>" and _ends_in_observing_call(instructions):
                continue
            return True
    return False


def _ends_in_observing_call(instructions: list[Any]) -> bool:
    names = [
        i.argval for i in instructions if i.opname in ("LOAD_METHOD", "LOAD_ATTR", "LOAD_GLOBAL", "LOAD_NAME")
    ]
    calls = [i for i in instructions[-4:] if i.opname.startswith("CALL")]
    return bool(calls) and any(name in _OBSERVING_CALLS for name in names)
