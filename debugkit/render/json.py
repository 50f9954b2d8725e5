"""The whole report as JSON, which ``Report.from_json`` reads."""

from __future__ import annotations

from debugkit.report import Report


def render(report: Report) -> str:
    """One JSON document, as ``report.schema.json`` describes it."""
    return report.to_json() + "\n"
