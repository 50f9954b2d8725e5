"""Watching a training loop while it runs, from outside."""

from __future__ import annotations

from debugkit.watch.session import Watch, watch

__all__ = ["Watch", "watch"]
