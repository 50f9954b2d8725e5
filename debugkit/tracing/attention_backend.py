"""The attention implementation of a transformers model, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def takes_backends(model: Any) -> bool:
    """Whether a model can be told which attention implementation to use."""
    return callable(getattr(model, "set_attn_implementation", None))


@contextmanager
def attention_backend(model: Any, name: str) -> Iterator[None]:
    """Use one implementation inside, such as ``eager`` or ``sdpa``, and what was used before afterwards.

    Raises:
        Exception: whatever the model raises for a name that it does not know.
    """
    before = _configs(model)
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        for config, value in before:
            if getattr(config, "_attn_implementation", None) != value:
                config._attn_implementation = value


def _configs(model: Any) -> list[tuple[Any, Any]]:
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
