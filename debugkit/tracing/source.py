"""Where in the user's own source something happened."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import FrameType

_OWN = (str(Path(__file__).parents[1]) + os.sep,)
_EXAMPLES = f"{os.sep}debugkit{os.sep}checks{os.sep}"


@cache
def _library_roots() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = {sysconfig.get_paths()[name] for name in names} | {str(Path(os.__file__).parent)}
    return tuple(
        sorted({os.path.realpath(path) + os.sep for path in paths} | {path + os.sep for path in paths})
    )


@cache
def is_library_file(filename: str) -> bool:
    """Whether a file belongs to Python, an installed package or debugkit, and not to the user."""
    if filename.startswith("<"):
        return not filename.startswith(("<ipython", "<stdin", "<string"))
    path = os.path.realpath(filename)
    if _EXAMPLES in path:
        return False
    return (
        path.startswith((*_library_roots(), *_OWN))
        or f"{os.sep}site-packages{os.sep}" in path
        or f"{os.sep}dist-packages{os.sep}" in path
    )


def is_library_class(kind: type) -> bool:
    """Whether a class is defined in Python, an installed package or debugkit, and not by the user."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and is_library_file(file)


def is_library_call(frame: FrameType | None = None) -> bool:
    """Whether the innermost frame outside torch and debugkit, from the caller on, is a library's."""
    frame = frame or sys._getframe(1)
    while frame is not None and (_is_own(frame) or _is_machinery(frame.f_code.co_filename)):
        frame = frame.f_back
    return frame is not None and is_library_file(frame.f_code.co_filename)


def user_location(frame: FrameType | None = None, *, outer: bool = False) -> str | None:
    """``train.py:41``: the innermost frame of the user's own code below debugkit on the stack.

    Args:
        frame: where to start; the caller's frame by default.
        outer: fall back to the innermost frame outside torch and debugkit when no frame is the user's,
            such as ``transformers/loss/loss_utils.py:36``.
    """
    frame = frame or sys._getframe(1)
    fallback: str | None = None
    while frame is not None and _is_own(frame):
        frame = frame.f_back
    while frame is not None and not _is_own(frame):
        filename = frame.f_code.co_filename
        if not is_library_file(filename):
            return f"{shorten(filename)}:{frame.f_lineno}"
        if outer and fallback is None and not _is_machinery(filename):
            fallback = f"{shorten(filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return fallback


def shorten(filename: str) -> str:
    """A path relative to the working directory or to ``site-packages``, else as it is."""
    marker = f"{os.sep}site-packages{os.sep}"
    if marker in filename:
        return filename.split(marker, 1)[1]
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _is_own(frame: FrameType) -> bool:
    path = os.path.realpath(frame.f_code.co_filename)
    return path.startswith(_OWN) and _EXAMPLES not in path


def _is_machinery(filename: str) -> bool:
    """Whether a file belongs to torch or to Python itself."""
    if not is_library_file(filename):
        return False
    return "site-packages" not in filename or f"{os.sep}site-packages{os.sep}torch{os.sep}" in filename
