"""``debugkit explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from debugkit.commands import options
from debugkit.commands.shared import load_checks, page_on

if TYPE_CHECKING:
    from debugkit.console.terminal import Color


@click.command()
@click.argument("check_id", metavar="ID")
@options.config
@options.color
@options.verbose
def explain(check_id: str, config: str | None, color: Color, verbose: bool) -> None:
    """Explain a check: why it matters, what to do, its options."""
    _, registry = load_checks(config)
    from debugkit.console.explain import explain as write

    page = page_on(color)
    write(registry[check_id], page)
    page.show()
