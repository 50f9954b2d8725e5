from __future__ import annotations

import io

from debugkit.console.progress import Progress


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def follow(file: io.StringIO, *, quiet: bool = False) -> str:
    with Progress(file, quiet=quiet) as progress:
        progress("plan", 3)
        progress("check", "label-balance")
        progress("evidence", "train-stream")
        progress("crash", ValueError())
        progress("done", None)
    return file.getvalue()


def test_silent_without_a_terminal() -> None:
    assert follow(io.StringIO()) == ""
    assert follow(Terminal(), quiet=True) == ""


def test_names_the_check_and_the_evidence_at_work() -> None:
    shown = follow(Terminal())
    assert "1/3" in shown
    assert "label-balance" in shown
    assert "measuring train-stream" in shown
