"""What keeps a watched program from failing because of the watch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from debugkit.errors import one_line

Method = TypeVar("Method", bound=Callable[..., Any])


class Guarded(Protocol):
    """What hears of events."""

    fault: str | None
    busy: bool

    def listens(self) -> bool:
        """Whether events count now."""

    def stop(self) -> None:
        """Look at nothing more."""


def seen(method: Method) -> Method:
    """A method that takes an event down: what goes wrong in it ends the watch, and is no error of the program."""

    @wraps(method)
    def guarded(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        if not self.listens():
            return None
        self.busy = True
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.fault = f"watching ended early: {one_line(error)}"
            self.stop()
            return None
        finally:
            self.busy = False

    return cast("Method", guarded)
