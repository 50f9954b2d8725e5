"""The report for people, on a terminal or in a log."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import groupby
from typing import TextIO

from rich.text import Text

from debugkit.console.terminal import Color, Page, prose
from debugkit.finding import Finding
from debugkit.report import BROKEN, CLEAN, FOUND, INTERRUPTED, NOTHING_CHECKED, FailOn, Report, Result, Status

_GLYPHS = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "-", "error": "?"}
_STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim", "error": "magenta"}
_WORDS = {"fail": "failed", "warn": "warned", "error": "not completed", "pass": "passed", "skip": "skipped"}
_QUIET = "dim"
_SHOWN = 4
_ONE_SCREEN = 24


def render(report: Report) -> str:
    """The report as plain text, 100 columns wide."""
    file = io.StringIO()
    print_report(report, file, color="never")
    return file.getvalue()


def print_report(
    report: Report,
    file: TextIO,
    color: Color | None = None,
    *,
    fail_on: FailOn | None = None,
    verbose: bool = False,
    width: int | None = None,
) -> None:
    """Print the report.

    Args:
        report: what to print.
        file: a terminal or any text file.
        color: ``always`` or ``never``; by default on a terminal without ``NO_COLOR``.
        fail_on: the threshold of the exit code, which the last line then explains.
        verbose: show every note, every finding, suppressed findings and measured numbers.
        width: columns; by default the terminal's, and 100 elsewhere.
    """
    page = Page(file, color, width)
    column = _column(report, page.width)
    judged = [result for result in report.results if result.status not in ("skip", "error")]
    page.line(prose(report.target, "bold"), Text(f" · {_plural(len(report.results), 'check')}", _QUIET))
    for family, results in groupby(judged, key=lambda result: result.family):
        page.blank()
        page.line(prose(family, "bold"))
        for result in results:
            _judged(page, result, column, verbose)
    _unjudged(page, report, "error", "could not be completed")
    _unjudged(page, report, "skip", "skipped")
    if report.notices:
        page.blank()
        page.line(Text("notices", "bold"))
        for notice in report.notices:
            page.line(Text("! ", _QUIET), prose(notice), indent=2, hang=4)
    page.blank()
    if len(report.results) > _ONE_SCREEN:
        _recall(page, report)
    page.line(_summary(report, fail_on))
    page.show()


def _column(report: Report, width: int) -> int:
    """Where messages start: right of the longest id, or below the ids where that leaves too little room."""
    ids = [len(result.check) for result in report.results if result.status not in ("skip", "error")]
    column = 4 + max(ids, default=0) + 2
    return column if width - column >= 44 else 6


def _judged(page: Page, result: Result, column: int, verbose: bool) -> None:
    notes = [finding for finding in result.findings if finding.level == "note"]
    hidden = [finding for finding in result.findings if finding.suppressed is not None]
    head = _head(result)
    if result.status == "pass":
        said = prose(notes[0].message) if notes else Text(_nothing_said(hidden), _QUIET)
        page.entry(head, said, column)
        notes = notes[1:]
    else:
        active = sorted(result.active, key=lambda finding: finding.level != "fail")
        shown = active if verbose else active[:_SHOWN]
        for number, finding in enumerate(shown):
            mixed = finding.level != result.status
            _finding(page, head if number == 0 else Text(), finding, column, verbose, mixed=mixed)
        if len(shown) < len(active):
            page.line(Text(f"… and {len(active) - len(shown)} more (-v shows them)", _QUIET), indent=column)
    if verbose:
        for note in notes:
            page.line(Text("note: ", _QUIET), prose(note.message), indent=column)
        for finding in hidden:
            page.line(
                Text(f"suppressed {finding.level}: ", _QUIET),
                prose(f"{finding.message} ({finding.suppressed})"),
                indent=column,
            )


def _finding(
    page: Page, head: Text, finding: Finding, column: int, verbose: bool, *, mixed: bool = False
) -> None:
    message = prose(finding.message)
    if mixed:
        message = Text.assemble((f"{finding.level}: ", _STYLES[finding.level]), message)
    page.entry(head, message, column)
    if place := _place(finding):
        page.line(Text("at ", _QUIET), prose(place), indent=column + 2, hang=column + 5)
    if finding.hint:
        page.line(Text("→ ", "green"), prose(finding.hint), indent=column + 2, hang=column + 4)
    if verbose and finding.measured:
        numbers = ", ".join(f"{name} = {_number(value)}" for name, value in finding.measured.items())
        page.line(Text("measured: ", _QUIET), prose(numbers), indent=column + 2, hang=column + 4)


def _place(finding: Finding) -> str | None:
    where = f"`{finding.where}`" if finding.where else None
    return f"{finding.location} in {where}" if finding.location and where else finding.location or where


def _unjudged(page: Page, report: Report, status: Status, title: str) -> None:
    """The skips or errors, one entry per reason."""
    reasons: dict[str, list[Result]] = {}
    for result in report.results:
        if result.status == status:
            reasons.setdefault(result.reason or "no reason given", []).append(result)
    if not reasons:
        return
    page.blank()
    page.line(Text(title, "bold"))
    for reason, results in reasons.items():
        glyph = Text(f"{_GLYPHS[status]} ", _STYLES[status])
        names = prose(", ".join(result.check for result in results), "" if status == "error" else _QUIET)
        page.line(glyph, prose(reason), indent=2, hang=4)
        page.line(names, indent=6)


def _recall(page: Page, report: Report) -> None:
    """Name what needs a look once more, since it has scrolled away."""
    for status in ("fail", "warn", "error"):
        names = [result.check for result in report.results if result.status == status]
        if names:
            page.line(
                Text(f"{_WORDS[status]}: ", _STYLES[status]),
                prose(", ".join(names)),
                hang=len(_WORDS[status]) + 2,
            )


def _summary(report: Report, fail_on: FailOn | None) -> Text:
    counts = report.counts
    parts: list[Text] = []
    for status, word in _WORDS.items():
        if counts[status]:  # type: ignore[index]
            style = _QUIET if status == "skip" else f"bold {_STYLES[status]}"
            parts.append(Text(f"{counts[status]} {word}", style))  # type: ignore[index]
    if report.suppressed:
        parts.append(Text(f"{report.suppressed} suppressed", _QUIET))
    text = Text(", ").join(parts)
    if report.results:
        text.append(f" in {report.seconds:.1f} s", _QUIET)
    else:
        text = Text("every check was left out, so there was nothing to do", "bold")
    if fail_on is not None:
        text.append(f" · {_meaning(report, fail_on)}", _QUIET)
    elif report.interrupted:
        text.append(" · interrupted", _QUIET)
    return text


def _meaning(report: Report, fail_on: FailOn) -> str:
    code = report.exit_code(fail_on)
    reasons = {
        CLEAN: "nothing failed" if fail_on == "fail" else "clean",
        FOUND: "a check failed" if report.counts["fail"] else "a check warned",
        BROKEN: "incomplete",
        NOTHING_CHECKED: "nothing was checked",
        INTERRUPTED: "interrupted",
    }
    if code == CLEAN and fail_on == "never" and report.status != "pass":
        return "exit 0: findings do not count"
    return f"exit {code}: {reasons[code]}"


def _head(result: Result) -> Text:
    style = _STYLES[result.status]
    return Text.assemble(
        "  ",
        (_GLYPHS[result.status], style),
        " ",
        prose(result.check, "" if result.status == "pass" else f"bold {style}"),
    )


def _nothing_said(hidden: Iterable[Finding]) -> str:
    count = sum(1 for _ in hidden)
    return f"{_plural(count, 'finding')} suppressed" if count else ""


def _number(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_number, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
