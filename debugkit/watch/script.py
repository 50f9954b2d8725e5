"""Running a program under watch as if Python itself ran it."""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.util
import io
import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_RUNNERS = (_OWN, "<frozen runpy>", runpy.__file__ or _OWN)

INTERRUPTED = 130


class WhenImported(importlib.abc.MetaPathFinder):
    """Calls a function as soon as a module has been imported, and then is gone.

    So torch is imported by the program itself, with the environment that the program has set up for it.
    """

    def __init__(self, name: str, then: Callable[[], object]) -> None:
        self._name = name
        self._then = then
        if name in sys.modules:
            then()
        else:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Wait no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The specification that the other finders give, with a loader that calls back."""
        if name != self._name:
            return None
        self.remove()
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            del loader.exec_module
            execute(module)
            self._then()

        loader.exec_module = exec_module
        return spec


def run_file(path: str, arguments: Sequence[str]) -> None:
    """Run a file as ``python PATH ARGUMENTS`` does; what it raises goes on."""
    full = os.path.abspath(path)
    with io.open_code(full) as file:
        code = compile(file.read(), full, "exec")
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=full, __builtins__=__builtins__, __cached__=None, __annotations__={})
    sys.argv[:] = [path, *arguments]
    _search_first(str(Path(full).parent))
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Run a module as ``python -m NAME ARGUMENTS`` does; what it raises goes on."""
    sys.argv[:] = [name, *arguments]
    _search_first(os.getcwd())
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def exit_code(error: BaseException | None) -> int:
    """The exit code of a program that ended with this, after saying what Python says about it."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    own_frames_left_out(error)
    sys.excepthook(type(error), error, error.__traceback__)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def leave_interrupts() -> None:
    """Ctrl-C acts in the program as in Python."""
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_by_interrupt() -> None:
    """End the process as Ctrl-C ends Python: after all else, by the signal."""

    def kill() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    if os.name == "posix":
        atexit.register(kill)


def own_frames_left_out(error: BaseException) -> None:
    """Take the frames of the watch out of a traceback, and of those that it follows from."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        part = queue.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            part.__traceback__ = _without_own(part.__traceback__)
            queue += [part.__cause__, part.__context__]


def _without_own(trace: types.TracebackType | None) -> types.TracebackType | None:
    frames = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_RUNNERS):
            frames.append(trace)
        trace = trace.tb_next
    kept: types.TracebackType | None = None
    for part in reversed(frames):
        kept = types.TracebackType(kept, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return kept


def _search_first(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path[0] = folder
