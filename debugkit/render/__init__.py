"""One file per output format: each turns a report into text and knows nothing of checks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from debugkit.report import Report

FORMATS: dict[str, str] = {
    "text": "debugkit.render.text",
    "concise": "debugkit.render.concise",
    "json": "debugkit.render.json",
    "jsonl": "debugkit.render.jsonl",
    "junit": "debugkit.render.junit",
}
"""The module of each format; it has a function ``render(report) -> str``."""


def render(report: Report, format: str) -> str:
    """The report in one of :data:`FORMATS`, ending in a line break unless it is empty."""
    text: str = import_module(FORMATS[format]).render(report)
    return text
