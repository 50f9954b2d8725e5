"""``debugkit watch``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from debugkit.commands import options
from debugkit.console.mistakes import Choice
from debugkit.console.outputs import destinations, write_report
from debugkit.errors import UsageError

if TYPE_CHECKING:
    from debugkit.console.terminal import Color
    from debugkit.report import FailOn

watched: list[str] = []
"""The program that was run under watch: standard output is its own to the end."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is a module's name.")
@options.select
@options.ignore
@click.option(
    "--stop-on",
    type=Choice(options.FAIL_ON),
    default="never",
    show_default=True,
    help="Which finding ends the program, with exit code 1.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Watch N optimizer steps; training goes on."
)
@click.option(
    "--preflight/--no-preflight",
    default=True,
    show_default=True,
    help="Run the checklist on the first iteration, for at most a minute.",
)
@click.option(
    "--log",
    multiple=True,
    metavar="DEST",
    help="Write metrics to FILE as JSON lines, to tensorboard:DIR or to wandb[:PROJECT]; repeatable.",
)
@click.option(
    "--log-every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="Optimizer steps from one look at the metrics to the next.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Sample predictions to write at each look.",
)
@options.formats
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Where the format at the same position goes; - is stderr, which is the default.",
)
@options.config
@options.color
@options.verbose
@click.option("-q", "--quiet", is_flag=True, help="No status line.")
@click.pass_context
def watch(
    ctx: click.Context,
    script: str,
    args: tuple[str, ...],
    is_module: bool,
    select: list[str],
    ignore: list[str],
    stop_on: FailOn,
    steps: int | None,
    preflight: bool,
    log: tuple[str, ...],
    log_every: int,
    samples: int,
    formats: tuple[str, ...],
    outputs: tuple[str, ...],
    config: str | None,
    color: Color,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run SCRIPT, unmodified, with ARGS, and watch its training loop.

    The program has its own command line, output and exit code. Findings are told on stderr as they come, and the
    report at the end, also after an error or Ctrl-C.
    """
    from debugkit.watch.program import Program
    from debugkit.watch.script import INTERRUPTED, end_by_interrupt, exit_code, leave_interrupts

    places = destinations(formats, outputs)
    if not is_module and not Path(script).is_file():
        raise UsageError(f"there is no file `{script}`")
    program = Program(
        name=script,
        arguments=args,
        is_module=is_module,
        select=select,
        ignore=ignore,
        config=config,
        stop_on=stop_on,
        steps=steps,
        preflight=preflight,
        log=log,
        log_every=log_every,
        samples=samples,
        quiet=quiet,
    )
    watched.append(script)
    leave_interrupts()
    ended = program.run()
    if isinstance(ended, UsageError):
        raise ended
    code = exit_code(ended)
    if (report := program.report) is None:
        click.echo(f"debugkit: `{script}` did not import torch, so nothing was watched", err=True)
    else:
        for form, path in places:
            write_report(report, form, path, sys.stderr, color=color, verbose=verbose, fail_on=None)
    if code == INTERRUPTED and isinstance(ended, KeyboardInterrupt):
        end_by_interrupt()
    ctx.exit(code)
