"""One line per finding, for editors and ``grep``."""

from __future__ import annotations

from collections.abc import Iterator

from debugkit.report import Report
from debugkit.terminal import printable


def render(report: Report) -> str:
    """``place: level check: message`` per finding that counts and per check that could not be completed."""
    return "".join(printable(line) + "\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    for result in report.results:
        for finding in result.active:
            place = finding.location or finding.where or report.target
            yield f"{place}: {finding.level} {result.check}: {finding.message}"
        if result.status == "error":
            yield f"{report.target}: error {result.check}: {result.reason}"
