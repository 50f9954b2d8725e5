"""Which module first turns finite values into ones that are not finite."""

from __future__ import annotations

from typing import Any

import torch

from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.watch.tensors import is_plain


class _Found(Exception):  # noqa: N818 - ends the pass
    pass


def first_bad_module(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The dotted name of the first module whose inputs are finite and outputs are not, or ``the batch``.

    The model runs once more in a sandbox, so that training goes on as before.

    Args:
        model: the model.
        args: what it was called with.
        kwargs: the same, by name.

    Returns:
        ``None`` if all its outputs are finite, or if it can't be run again.
    """
    if not _finite([args, kwargs]):
        return "the batch"
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}
    blamed: list[str] = []

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if _finite(inputs) and not _finite(output):
            blamed.append(names[module])
            raise _Found

    with Sandbox(Target(model)) as sandbox, sandbox.probe():
        handles = [module.register_forward_hook(look) for module in names]
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except (_Found, RuntimeError, ValueError, TypeError):
            pass
        finally:
            for handle in handles:
                handle.remove()
    return blamed[0] if blamed else None


def _finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not is_plain(value) or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True
