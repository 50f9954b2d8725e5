"""Ctrl-C: the first ends the run, those that follow at once do not cost the report, and none cuts a restore short."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SPARED_SECONDS = 2.0

_acted = float("-inf")


def take_interrupts() -> None:
    """Answer Ctrl-C with :class:`KeyboardInterrupt`, at most once in :data:`SPARED_SECONDS`.

    A handler that somebody else has set, such as the shell that ignores the signal, stays. What is pressed
    while the interpreter shuts down has no effect, so that the exit code stays.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def spare_interrupts() -> None:
    """Let no Ctrl-C act for the next :data:`SPARED_SECONDS`: time to write the report."""
    global _acted
    _acted = time.monotonic()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[Any] = []
    try:
        before = signal.signal(signal.SIGINT, lambda *received: pending.append(received))
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending and callable(before):
            before(*pending[0])


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if time.monotonic() - _acted > SPARED_SECONDS:
        spare_interrupts()
        raise KeyboardInterrupt
