"""JUnit XML, for CI systems: one suite per target, one test case per check."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from debugkit.finding import Finding
from debugkit.report import Report, Result

_DECLARATION = '<?xml version="1.0" encoding="utf-8"?>\n'
_INVALID = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """A fail is a failure, an error an error, a skip is skipped; a warn passes and is a property."""
    counts = report.counts
    totals: dict[str, str] = {
        "tests": str(len(report.results)),
        "failures": str(counts["fail"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skip"]),
        "time": f"{report.seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "debugkit", **totals})
    suite = ET.SubElement(root, "testsuite", {"name": _valid(report.target), **totals})
    _properties(
        suite,
        [("debugkit.version", report.debugkit_version), ("debugkit.seed", str(report.seed))]
        + [("debugkit.notice", notice) for notice in report.notices],
    )
    for result in report.results:
        _case(suite, result)
    ET.indent(root)
    return _DECLARATION + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, result: Result) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        name=_valid(result.check),
        classname=_valid(result.family),
        time=f"{result.seconds:.3f}",
    )
    told = [finding for finding in result.findings if finding not in result.active]
    if result.status == "warn":
        _properties(case, [("debugkit.status", "warn")])
        told = list(result.findings)
    elif result.status == "fail":
        first = next(finding for finding in result.active if finding.level == "fail")
        element = ET.SubElement(case, "failure", type="fail", message=_valid(first.message))
        element.text = _valid(_account(result.active))
    elif result.status == "error":
        ET.SubElement(case, "error", type="error", message=_valid(result.reason or ""))
    elif result.status == "skip":
        ET.SubElement(case, "skipped", message=_valid(result.reason or ""))
    if told:
        ET.SubElement(case, "system-out").text = _valid(_account(told))


def _account(findings: Iterable[Finding]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.level}: {finding.message}")
        places = [place for place in (finding.location, finding.where) if place]
        lines += [f"  at {', '.join(places)}"] if places else []
        lines += [f"  hint: {finding.hint}"] if finding.hint else []
        lines += [f"  suppressed: {finding.suppressed}"] if finding.suppressed else []
    return "\n".join(lines)


def _properties(parent: ET.Element, pairs: Iterable[tuple[str, str]]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in pairs:
        ET.SubElement(properties, "property", name=name, value=_valid(value))


def _valid(text: str) -> str:
    """The text without the characters that XML 1.0 can't hold."""
    return _INVALID.sub("", text)
