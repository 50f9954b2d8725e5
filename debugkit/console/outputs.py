"""Where a report goes: the pairs of ``--format`` and ``--output``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from debugkit.errors import UsageError

if TYPE_CHECKING:
    from debugkit.console.terminal import Color
    from debugkit.report import FailOn, Report


def destinations(formats: Sequence[str], outputs: Sequence[str]) -> list[tuple[str, str]]:
    """``(format, path)`` pairs, with ``-`` for stdout, where exactly one format goes.

    Raises:
        UsageError: they don't pair up, share a place, or name one that can't be written.
    """
    if len(outputs) > len(formats):
        raise UsageError(f"`--output {outputs[len(formats)]}` has no `--format` at its position")
    pairs = [(form, outputs[index] if index < len(outputs) else "-") for index, form in enumerate(formats)]
    on_stdout = [form for form, path in pairs if path == "-"]
    if len(on_stdout) > 1:
        named = " and ".join(f"`{form}`" for form in on_stdout)
        raise UsageError(f"{named} can't share stdout; give all but one an `--output`")
    files = [path for _, path in pairs if path != "-"]
    for path in files:
        if files.count(path) > 1:
            raise UsageError(f"two formats go to the same `--output {path}`")
        _refuse_unwritable(Path(path))
    return pairs if on_stdout else [*pairs, ("text", "-")]


def _refuse_unwritable(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"`--output {path}` is a folder")
    if path.exists():
        writable = os.access(path, os.W_OK)
    elif not path.parent.is_dir():
        raise UsageError(f"`--output {path}`: there is no folder `{path.parent}`")
    else:
        writable = os.access(path.parent, os.W_OK)
    if not writable:
        raise UsageError(f"`--output {path}` can't be written: permission denied")


def write_report(
    report: Report,
    form: str,
    path: str,
    stdout: TextIO,
    *,
    color: Color,
    verbose: bool,
    fail_on: FailOn | None,
) -> None:
    """Write a report in one format to a path, ``-`` being stdout.

    Raises:
        UsageError: the file can't be written.
        OSError: stdout can't.
    """
    from debugkit.render import render

    if form == "text":
        from debugkit.render.text import print_report

        if path == "-":
            print_report(report, stdout, color, fail_on=fail_on, verbose=verbose)
            return
    try:
        if path == "-":
            _write_utf8(stdout, render(report, form))
        elif form == "text":
            with open(path, "w", encoding="utf-8") as file:
                print_report(report, file, "never", fail_on=fail_on, verbose=verbose)
        else:
            Path(path).write_text(render(report, form), encoding="utf-8")
    except OSError as error:
        if path == "-":
            raise
        raise UsageError(f"`--output {path}` can't be written: {error.strerror}") from error


def _write_utf8(stdout: TextIO, text: str) -> None:
    """JSON and XML are UTF-8 whatever the locale says."""
    stdout.flush()
    buffer = getattr(stdout, "buffer", None)
    if buffer is None:
        stdout.write(text)
    else:
        buffer.write(text.encode())
    stdout.flush()
