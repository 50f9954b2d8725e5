"""Watching a training loop while it runs, from outside.

The names are loaded on first use: ``debugkit watch`` lets the program that it runs import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from debugkit.watch.session import Watch, watch

__all__ = ["Watch", "watch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from debugkit.watch import session

    return getattr(session, name)
