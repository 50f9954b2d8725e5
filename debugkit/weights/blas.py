"""The threads of the BLAS library that comes with NumPy."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_SYMBOLS = ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for each product and eigenvalue problem, where NumPy brings OpenBLAS; put back afterwards.

    Many small calls want one thread each, and several callers.
    """
    functions = _thread_functions()
    if functions is None:
        yield
        return
    get, set_ = functions
    before = get()
    set_(1)
    try:
        yield
    finally:
        set_(before)


def cores() -> int:
    """How many threads this process may use: its cores, or what ``OMP_NUM_THREADS`` says if that is fewer."""
    affinity = getattr(os, "sched_getaffinity", None)
    there = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, max(1, int(asked))) if asked.isdecimal() else there


@functools.cache
def _thread_functions() -> tuple[Any, Any] | None:
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".libs", package / ".dylibs"):
        for file in sorted(folder.glob("*openblas*")):
            library = ctypes.CDLL(str(file))
            for symbol in _SYMBOLS:
                get, set_ = (getattr(library, symbol.format(verb), None) for verb in ("get", "set"))
                if get is not None and set_ is not None:
                    return get, set_
    return None
