"""``debugkit weights``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from debugkit.commands import options
from debugkit.console.mistakes import Tracebacks
from debugkit.console.outputs import destinations

if TYPE_CHECKING:
    from debugkit.console.terminal import Color
    from debugkit.report import FailOn


@click.command()
@click.argument("path")
@click.option("--compare", metavar="PATH", help="Another checkpoint: show what moved from PATH to it.")
@click.option("--base", metavar="PATH", help="The base model of a LoRA adapter, to merge it with.")
@options.select
@options.ignore
@options.fail_on
@options.formats
@options.outputs
@options.settings
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Begin no layer that would not end within this time.",
)
@click.option("--layers", metavar="FILE", help="Write the measures of every layer as .csv or .json.")
@click.option("--plot", metavar="FILE.svg", help="Draw alpha, alpha by depth, and one layer's spectrum.")
@click.option("--layer", metavar="NAME", help="The layer whose spectrum is shown (default: the worst).")
@options.config
@options.color
@options.verbose
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def weights(
    ctx: click.Context,
    path: str,
    compare: str | None,
    base: str | None,
    select: list[str],
    ignore: list[str],
    fail_on: FailOn | None,
    formats: tuple[str, ...],
    outputs: tuple[str, ...],
    settings: tuple[str, ...],
    budget: float | None,
    layers: str | None,
    plot: str | None,
    layer: str | None,
    config: str | None,
    color: Color,
    verbose: bool,
    quiet: bool,
) -> None:
    """Judge the weights of a checkpoint, without building the model.

    PATH is a safetensors, PyTorch or GGUF file, a folder that holds one or its shards, or a LoRA adapter. One
    tensor is in memory at a time. Under torchrun the processes share the work.

    Exit codes: as for check.
    """
    from debugkit.console.streams import reserved_stdout
    from debugkit.state.interrupts import spare_interrupts

    places = destinations(formats, outputs)
    with reserved_stdout() as stdout:
        from debugkit.config import Config
        from debugkit.console.weights import Request, weigh

        settled = Config.read(config)
        overrides = {"budget": budget, "fail_on": fail_on}
        settled = settled.model_copy(update={name: value for name, value in overrides.items() if value})
        request = Request(
            path=path,
            compare=compare,
            base=base,
            select=select,
            ignore=ignore,
            config=settled,
            settings=settings,
            places=places,
            layers=layers,
            plot=plot,
            layer=layer,
            color=color,
            verbose=verbose,
            quiet=quiet,
        )
        report = weigh(request, stdout, Tracebacks(verbose))
        if report.interrupted:
            spare_interrupts()
    ctx.exit(report.exit_code(settled.fail_on))
