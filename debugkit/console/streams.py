"""Standard output belongs to the report: whatever else prints goes to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Send what Python code, extensions and child processes print on stdout to stderr instead.

    Yields:
        The real standard output.
    """
    python_stdout = sys.stdout
    if not _is_process_stdout(python_stdout):
        with contextlib.redirect_stdout(sys.stderr):
            yield python_stdout
        return
    _flush()
    real = open(os.dup(1), "w", encoding=python_stdout.encoding, errors="backslashreplace")  # noqa: SIM115
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield real
            real.flush()
    finally:
        with contextlib.suppress(OSError):
            _flush()
        os.dup2(real.fileno(), 1)
        with contextlib.suppress(OSError):
            real.close()


def open_closed() -> None:
    """Where standard output or standard error is closed, print to nowhere."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def close_stdout() -> None:
    """What is printed from now on, at exit say, goes to standard error; what could not be written is dropped."""
    with contextlib.suppress(OSError, ValueError):
        try:
            _flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            _flush()
        os.dup2(2, 1)


def _is_process_stdout(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1 and sys.stderr is not None
    except (AttributeError, io.UnsupportedOperation, ValueError):
        return False


def _flush() -> None:
    """Empty Python's and C's buffers into the descriptor that they were written for."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
