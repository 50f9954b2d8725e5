"""Options that commands share."""

from __future__ import annotations

from collections.abc import Sequence

import click

from debugkit.console.mistakes import Choice, remember_verbose
from debugkit.render import FORMATS

COSTS = ("static", "data", "forward", "backward", "training")
FAIL_ON = ("warn", "fail", "never")
COLORS = ("auto", "always", "never")


def parts(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[str]:
    """The parts between commas of every value."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


config = click.option(
    "--config", metavar="FILE", help="A pyproject.toml; by default the nearest one upwards."
)
select = click.option(
    "--select", multiple=True, callback=parts, metavar="IDS", help="Checks to run: ids, families, globs."
)
ignore = click.option("--ignore", multiple=True, callback=parts, metavar="IDS", help="Checks to leave out.")
fail_on = click.option("--fail-on", type=Choice(FAIL_ON), help="What makes the exit code 1 (default: fail).")
formats = click.option(
    "--format", "formats", multiple=True, type=Choice(list(FORMATS)), help="Output format; repeatable."
)
outputs = click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Where the format at the same position goes; - is stdout, which is the default.",
)
settings = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="ID.OPTION=VALUE",
    help="Set an option of a check or of evidence.",
)
color = click.option("--color", type=Choice(COLORS), default="auto", help="Colour the text on stdout.")
verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=remember_verbose,
    help="Show every note, every finding, and the traceback of every mistake.",
)
