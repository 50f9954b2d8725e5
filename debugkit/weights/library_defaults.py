"""Numbers that come from the library of a model, and not from its user."""

from __future__ import annotations

from typing import Any

import torch

from debugkit.tracing.source import is_library_class


def is_own_default(model: torch.nn.Module, module: str | None, value: float) -> bool:
    """Whether a number is what the class of a model's config has by default.

    Args:
        model: the model.
        module: dotted name of the module that uses the number; the configs around it are read.
        value: the number.
    """
    path = module.split(".") if module else []
    for depth in range(len(path), -1, -1):
        owner = model.get_submodule(".".join(path[:depth]))
        config: Any = getattr(owner, "config", None)
        if config is None or not is_library_class(type(config)) or not is_library_class(type(owner)):
            continue
        names = [name for name, held in getattr(config, "__dict__", {}).items() if held == value]
        try:
            usual = type(config)()
        except Exception:  # a foreign class may refuse in any way
            continue
        if names:
            return all(getattr(usual, name, None) == value for name in names)
    return False
