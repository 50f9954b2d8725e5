"""A linter for training runs: finds what is silently broken before the GPU hours are spent.

The public names are loaded on first use, so that ``import debugkit`` does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from debugkit.check import check
    from debugkit.errors import Broken, ChecklistFailed, DebugkitWarning, Unavailable, UsageError
    from debugkit.finding import Finding, fail, note, warn
    from debugkit.gate import gate
    from debugkit.report import Report, Result
    from debugkit.runner import run
    from debugkit.target import Target
    from debugkit.watch import watch

__version__ = "0.1.0"

_HOMES = {
    "Broken": "errors",
    "ChecklistFailed": "errors",
    "DebugkitWarning": "errors",
    "Finding": "finding",
    "Report": "report",
    "Result": "report",
    "Target": "target",
    "Unavailable": "errors",
    "UsageError": "errors",
    "check": "check",
    "fail": "finding",
    "gate": "gate",
    "note": "finding",
    "run": "runner",
    "warn": "finding",
    "watch": "watch",
}

__all__ = [
    "Broken",
    "ChecklistFailed",
    "DebugkitWarning",
    "Finding",
    "Report",
    "Result",
    "Target",
    "Unavailable",
    "UsageError",
    "__version__",
    "check",
    "fail",
    "gate",
    "note",
    "run",
    "warn",
    "watch",
]


class _Package(ModuleType):
    """Keeps public names such as ``check`` and ``watch`` apart from the modules and packages of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"debugkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
