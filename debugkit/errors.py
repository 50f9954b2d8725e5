"""What can go wrong, by whose hand: the user's request, the user's program, or a missing ingredient."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from debugkit.report import Report


class UsageError(Exception):
    """The request can't be carried out as written. Exit code 2, one sentence, no traceback."""


class Unavailable(Exception):  # noqa: N818 - a refusal, not an error
    """Evidence that this target can't give. The checks that need it are skipped with this reason."""


class Broken(Exception):  # noqa: N818 - names the state of the user's program
    """The user's program raised while it was being measured. The checks that need it are errors."""


class ChecklistFailed(Exception):  # noqa: N818 - the contract's name
    """Raised by :func:`debugkit.gate` when the checklist finds a failure.

    Attributes:
        report: the full :class:`debugkit.Report`.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class DebugkitWarning(UserWarning):
    """A check's warn verdict, as a Python warning (pytest plugin)."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean `x`?)`` for the valid name closest to ``name``, or an empty string."""
    close = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean `{close[0]}`?)" if close else ""


def one_line(error: BaseException, limit: int = 300) -> str:
    """``TypeName: message`` on one line, cut to ``limit`` characters."""
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
