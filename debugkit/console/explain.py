"""What a check's declaration says, for people: its docstring, options, cost and evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from rich.text import Text

from debugkit.check import Check
from debugkit.console.terminal import Page, prose
from debugkit.evidence import COSTS, collector, evidence_id
from debugkit.registry import Registry
from debugkit.signature import describe_option

_QUIET = "dim"


def explain(check: Check, page: Page) -> None:
    """Write a check's page."""
    page.line(prose(check.id, "bold"), Text(f" · {check.family} · cost {check.when}", _QUIET))
    page.blank()
    _docstring(check.doc, page)
    options = list(_options(check))
    if options:
        _heading(page, "Options")
        for setting, kind, default, description in options:
            page.line(
                prose(f"--set {setting}={_shown(default)}"), Text(f"  {kind}", _QUIET), indent=2, hang=6
            )
            if description:
                page.line(prose(description), indent=6)
    _heading(page, "Evidence")
    read = ", ".join(sorted(evidence_id(kind) for kind in check.reads)) or "the Target itself"
    page.line(prose(f"reads {read}"), indent=2, hang=6)
    page.line(prose(f"defined by {check.provider} at {check.place}"), indent=2, hang=6)
    _heading(page, "To turn it off, with a reason, in pyproject.toml")
    for line in (
        "[tool.debugkit.ignore]",
        f'{check.id} = "why it does not apply here"',
        "",
        "# or only at one place",
        "[[tool.debugkit.suppress]]",
        f'check = "{check.id}"',
        'where = "the finding\'s place, or a glob"',
        'reason = "why it is right there"',
    ):
        page.line(prose(line), indent=2)


def contents(registry: Registry, page: Page) -> None:
    """Write the list of checks: id, cost or moment, and summary, by family."""
    width = max((len(check.id) for check in registry.values()), default=0) + 2
    costs = max(map(len, COSTS)) + 2
    column = 2 + width + costs
    for family in registry.families:
        page.line(prose(family, "bold"))
        for check in registry.values():
            if check.family == family:
                head = prose(f"  {check.id:<{width}}")
                head.append(f"{check.when:<{costs}}", _QUIET)
                page.entry(head, prose(check.summary), column)
        page.blank()
    page.line(f"{len(registry)} checks · `debugkit explain ID` tells more about one")


def facts(check: Check) -> dict[str, object]:
    """A check's declaration as plain data."""
    return {
        "id": check.id,
        "family": check.family,
        "cost": check.cost,
        "summary": check.summary,
        "provider": check.provider,
        "place": check.place,
        "evidence": sorted(evidence_id(kind) for kind in check.reads),
        "options": [
            {"name": setting, "type": kind, "default": default, "description": description}
            for setting, kind, default, description in _options(check)
        ],
    }


def _options(check: Check) -> Iterator[tuple[str, str, Any, str]]:
    """``(id.option, type, default, description)`` of the check's own options, then of its evidence."""
    yield from _fields(check.id, check.signature.options)
    for kind in sorted(check.reads, key=evidence_id):
        yield from _fields(evidence_id(kind), collector(kind).options)


def _fields(owner: str, options: type[BaseModel]) -> Iterator[tuple[str, str, Any, str]]:
    for name, field in options.model_fields.items():
        kind, description = describe_option(field)
        yield f"{owner}.{field.alias or name}", kind, field.default, description


def _shown(default: Any) -> str:
    """A default as ``--set`` reads it."""
    if default is None:
        return "VALUE (unset by default)"
    if isinstance(default, (list, tuple)):
        return f"[{', '.join(map(_shown, default))}]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _heading(page: Page, title: str) -> None:
    page.blank()
    page.line(prose(title, "bold"))


def _docstring(doc: str, page: Page) -> None:
    """Headings, lists and paragraphs, wrapped anew; indented blocks as they are."""
    for block in re.split(r"\n\s*\n|\n(?=## )", doc):
        head, _, rest = block.partition("\n")
        if head.startswith("## "):
            _heading(page, head[3:].strip())
            block = rest
        elif block is not doc and head != doc.partition("\n")[0]:
            page.blank()
        for paragraph in re.split(r"\n(?=\s*[-*] )", block):
            if re.match(r"    ", paragraph):
                for line in paragraph.splitlines():
                    page.line(prose(line))
            elif paragraph.strip():
                bullet = bool(re.match(r"\s*[-*] ", paragraph))
                page.line(prose(" ".join(paragraph.split())), hang=2 if bullet else 0)
