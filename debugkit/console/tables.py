"""The table of checks in a Markdown file: ``python -m debugkit.console.tables README.md`` brings it up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from debugkit.errors import UsageError
from debugkit.registry import Registry, load

BEGIN = "<!-- checks: written by `python -m debugkit.console.tables` -->"
END = "<!-- end of checks -->"


def table(registry: Registry, provider: str = "builtin") -> str:
    """A provider's checks as a Markdown table, by family."""
    rows = ["| check | family | what it catches | cost |", "|---|---|---|---|"]
    rows += [
        f"| `{check.id}` | {check.family} | {check.summary.replace('|', chr(92) + '|')} | {check.cost} |"
        for check in registry.values()
        if check.provider == provider
    ]
    return "\n".join(rows)


def updated(text: str, registry: Registry) -> str:
    """The text with the table between its two marks written anew.

    Raises:
        UsageError: the marks are missing.
    """
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not place.search(text):
        raise UsageError(f"there is no place for the table: put `{BEGIN}` and `{END}` on lines of their own")
    return place.sub(lambda _: f"{BEGIN}\n\n{table(registry)}\n\n{END}", text)


def main(paths: list[str]) -> None:
    """Update the files."""
    registry = load()
    for path in map(Path, paths):
        path.write_text(updated(path.read_text(encoding="utf-8"), registry), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
