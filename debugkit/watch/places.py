"""Which line of the watched program is at work, cheaply enough to ask at every step."""

from __future__ import annotations

import sys
from functools import cache

from debugkit.tracing.source import is_library_file, shorten

_OWN = __name__.rpartition(".")[0].replace(".", "/")


@cache
def _rank(filename: str) -> int:
    """0 for torch, Python and debugkit, 1 for another library, 2 for the user's own files."""
    if not is_library_file(filename):
        return 2
    path = filename.replace("\\", "/")
    return int("/site-packages/" in path and "/site-packages/torch/" not in path and _OWN not in path)


@cache
def _shown(filename: str) -> str:
    return shorten(filename)


def line_at_work() -> tuple[str, int] | None:
    """``(file, line)`` of the innermost frame of the user, else of a library other than torch."""
    frame = sys._getframe(1)
    fallback: tuple[str, int] | None = None
    while frame is not None:
        rank = _rank(frame.f_code.co_filename)
        if rank == 2:
            return frame.f_code.co_filename, frame.f_lineno
        if rank == 1 and fallback is None:
            fallback = frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return fallback


def shown(line: tuple[str, int] | None) -> str | None:
    """``train.py:41``."""
    return None if line is None else f"{_shown(line[0])}:{line[1]}"
