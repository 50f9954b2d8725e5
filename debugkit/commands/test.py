"""``debugkit test``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from debugkit.commands import options
from debugkit.commands.shared import load_checks, page_on

if TYPE_CHECKING:
    from debugkit.console.terminal import Color

FOUND = 1


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@options.config
@options.color
@options.verbose
@click.pass_context
def test(ctx: click.Context, ids: tuple[str, ...], config: str | None, color: Color, verbose: bool) -> None:
    """Run checks on their own good and bad examples.

    ID is an id, a family or a glob; all checks by default.

    Exit codes: 0 every good example passes and every bad one is flagged, 1 not so, 2 usage error.
    """
    from debugkit.console.streams import reserved_stdout

    with reserved_stdout() as stdout:
        _, registry = load_checks(config)
        from debugkit.console.examples import show_examples

        chosen = registry.match(options.parts(ctx, ctx.command.params[0], ids) or ["all"])
        checks = [check for check in registry.values() if check.id in chosen]
        wrong = sum(show_examples(check, registry, stdout, color, verbose=verbose) for check in checks)
        page = page_on(color, stdout)
        page.line(f"checks tested: {len(checks)}, problems: {wrong or 'none'}")
        page.show()
    ctx.exit(FOUND if wrong else 0)
