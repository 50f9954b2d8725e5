"""The command line: its group, its program, and how the program ends. Nothing here imports torch."""

from __future__ import annotations

import click

from debugkit import __version__
from debugkit.commands.about import schema, version
from debugkit.commands.check import check
from debugkit.commands.explain import explain
from debugkit.commands.list_ import list_
from debugkit.commands.new import new
from debugkit.commands.peek import peek
from debugkit.commands.test import test
from debugkit.commands.watch import watch, watched
from debugkit.commands.weights import weights
from debugkit.console.mistakes import Commands


def main() -> None:
    """The ``debugkit`` program."""
    from debugkit.console.streams import close_stdout, open_closed
    from debugkit.state.interrupts import take_interrupts

    take_interrupts()
    open_closed()
    try:
        commands(prog_name="debugkit")
    finally:
        if not watched:
            close_stdout()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="debugkit %(version)s")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Find what is silently broken in a training run, before it costs GPU hours."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (check, watch, weights, list_, peek, explain, new, test, schema, version):
    commands.add_command(command)
