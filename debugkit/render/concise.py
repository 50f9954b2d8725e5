"""One line per finding, for editors and ``grep``."""

from __future__ import annotations

from collections.abc import Iterator

from debugkit.console.terminal import printable
from debugkit.report import Report


def render(report: Report) -> str:
    """``place: level check: message`` per finding that counts and per check that could not be completed.

    The place is ``file.py:12`` where one is known, else the target and the name inside it.
    """
    return "".join(printable(line) + "\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    for result in report.results:
        for finding in result.active:
            within = f"{report.target} `{finding.where}`" if finding.where else report.target
            place = finding.location or within
            yield f"{place}: {finding.level} {result.check}: {finding.message}"
        if result.status == "error":
            yield f"{report.target}: error {result.check}: {result.reason}"
