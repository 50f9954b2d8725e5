"""Ctrl-C: the first ends the run, and those that follow at once do not cost the report."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from types import FrameType

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


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if time.monotonic() - _acted > SPARED_SECONDS:
        spare_interrupts()
        raise KeyboardInterrupt
