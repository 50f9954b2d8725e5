"""What can go wrong, by whose hand: the user's request, the user's program, or a missing ingredient."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import dropwhile
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


def with_article(name: str) -> str:
    """``an `int` ``, ``a `Trainer` ``, ``an `MLP` ``."""
    vowels = "aefhilmnorsx" if name[:2].isupper() else "aeio"
    return f"{'an' if name[:1].lower() in vowels else 'a'} `{name}`"


def one_line(error: BaseException, limit: int = 300) -> str:
    """``TypeName: message`` on one line, cut to ``limit`` characters.

    Of an error that torch passes on from a worker with its traceback in the message, what was raised there.
    """
    name, said, place = type(error).__name__, str(error), ""
    if passed_on := re.search(r" in ([^\n]*)\.\s+Original Traceback", said):
        name, said = "", _raised(said)
        place = f" (in {'a loader worker' if 'DataLoader' in passed_on[1] else passed_on[1]})"
    text = ": ".join(part for part in (name, " ".join(said.split())) if part)
    room = limit - len(place)
    return (text if len(text) <= room else text[: room - 1] + "…") + place


def _raised(traceback: str) -> str:
    """The last exception of a printed traceback, without its frames, which are indented."""
    last = traceback.rpartition("Traceback (most recent call last):")[2].strip("\n").splitlines()
    raised = "\n".join(dropwhile(lambda line: line.startswith(" "), last))
    return raised or traceback.strip().rpartition("\n")[2]
