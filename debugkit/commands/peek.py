"""``debugkit peek``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from debugkit.commands import options
from debugkit.commands.shared import page_on
from debugkit.console.mistakes import Choice
from debugkit.errors import UsageError

if TYPE_CHECKING:
    from debugkit.console.terminal import Color
    from debugkit.data.rows import Split


@click.command()
@click.argument("spec")
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True, help="How many to show.")
@click.option(
    "--split", type=Choice(["train", "eval"]), default="train", show_default=True, help="The loader."
)
@click.option("--full", is_flag=True, help="Show long texts to their end.")
@options.color
@options.verbose
def peek(spec: str, samples: int, split: Split, full: bool, color: Color, verbose: bool) -> None:
    """Show samples of what SPEC names as the model sees them.

    Text decoded from the token ids, special tokens, masked positions, supervised tokens, labels.
    """
    from debugkit.console.spec import Spec
    from debugkit.console.streams import reserved_stdout

    where = Spec.parse(spec)
    with reserved_stdout() as stdout:
        from debugkit.console.peek import peek as look
        from debugkit.console.spec import load_target
        from debugkit.errors import Broken, Unavailable
        from debugkit.render.peek import render

        try:
            found = look(load_target(where), samples, split)
        except (Broken, Unavailable) as error:
            raise UsageError(str(error)) from error
        page = page_on(color, stdout)
        render(found, page, full=full)
        page.show()
