"""``debugkit list``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from debugkit.commands import options
from debugkit.commands.shared import echo_json, load_checks, page_on
from debugkit.console.mistakes import Choice

if TYPE_CHECKING:
    from debugkit.console.terminal import Color


@click.command("list")
@click.option("--format", "form", type=Choice(["text", "json"]), default="text", help="Output format.")
@options.config
@options.color
@options.verbose
def list_(form: str, config: str | None, color: Color, verbose: bool) -> None:
    """List the checks: id, cost and summary, by family."""
    _, registry = load_checks(config)
    from debugkit.console.explain import contents, facts

    if form == "json":
        echo_json([facts(check) for check in registry.values()])
        return
    page = page_on(color)
    contents(registry, page)
    page.show()
