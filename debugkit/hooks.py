"""Which hooks stay in a probe pass: those that the model's computation depends on.

Hooks that libraries install (weight norm, pruning, device placement) compute; hooks that a person adds
mostly look. A person's hook is kept out unless its code can return a value, since only a returned value
changes the pass. Hooks on parameters are always kept out: they act on gradients that nobody will use, and
some of them step an optimizer.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch

from debugkit.source import is_library_file

_MODULE_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_OBSERVING_CALLS = frozenset(
    {
        "append",
        "appendleft",
        "add",
        "update",
        "extend",
        "setdefault",
        "__setitem__",
        "write",
        "print",
        "info",
        "log",
    }
)


@contextmanager
def quiet_hooks(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Take the hooks that only observe out of the modules and their parameters, then put them back."""
    emptied: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []
    try:
        for module in modules:
            for name in _MODULE_HOOKS:
                hooks = getattr(module, name, None)
                if hooks:
                    emptied.append((hooks, dict(hooks)))
                    for key in [key for key, hook in hooks.items() if not is_structural(hook)]:
                        del hooks[key]
            for parameter in module._parameters.values():
                for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                    hooks = getattr(parameter, name, None) if parameter is not None else None
                    if hooks:
                        emptied.append((hooks, dict(hooks)))
                        hooks.clear()
        yield
    finally:
        for hooks, contents in emptied:
            hooks.clear()
            hooks.update(contents)


def is_structural(hook: Any) -> bool:
    """Whether a module hook may change what the module computes."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = inspect.unwrap(hook) if callable(hook) else hook
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        function = getattr(type(function), "__call__", None)
        if not inspect.isfunction(function):
            return False
    return is_library_file(function.__code__.co_filename) or _returns_value(function)


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
