"""``debugkit check``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from debugkit.commands import options
from debugkit.console.mistakes import Choice, Tracebacks
from debugkit.console.outputs import destinations, write_report

if TYPE_CHECKING:
    from debugkit.console.terminal import Color
    from debugkit.report import FailOn


@click.command()
@click.argument("spec")
@options.select
@options.ignore
@options.fail_on
@options.formats
@options.outputs
@options.settings
@click.option("--max-cost", type=Choice(options.COSTS), help="Leave out what costs more.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Begin no check after this time.",
)
@click.option("--seed", type=click.IntRange(min=0), help="What every measurement starts from (default: 0).")
@click.option("--baseline", metavar="FILE", help="A JSON report whose findings do not count again.")
@options.config
@options.color
@options.verbose
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def check(
    ctx: click.Context,
    spec: str,
    select: list[str],
    ignore: list[str],
    fail_on: FailOn | None,
    formats: tuple[str, ...],
    outputs: tuple[str, ...],
    settings: tuple[str, ...],
    max_cost: str | None,
    budget: float | None,
    seed: int | None,
    baseline: str | None,
    config: str | None,
    color: Color,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run the checklist on what SPEC names, before training it.

    SPEC is file.py[:attr] or package.module[:attr]. The attribute is a Target, a Trainer, or a function
    without arguments that returns one; it is called `target` by default.

    Exit codes: 0 clean, 1 findings at or above --fail-on, 2 usage error or a check could not be completed,
    3 nothing was checked, 130 interrupted.
    """
    from debugkit.console.spec import Spec
    from debugkit.console.streams import reserved_stdout
    from debugkit.state.interrupts import spare_interrupts

    places = destinations(formats, outputs)
    where = Spec.parse(spec)
    with reserved_stdout() as stdout:
        from debugkit.config import Baseline, Config
        from debugkit.console.progress import Progress
        from debugkit.console.spec import load_target
        from debugkit.registry import load
        from debugkit.runner import Run

        overrides = {"max_cost": max_cost, "budget": budget, "seed": seed, "fail_on": fail_on}
        settled = Config.read(config).model_copy(
            update={name: value for name, value in overrides.items() if value is not None}
        )
        known = Baseline.read(baseline) if baseline is not None else None
        registry = load(settled.load)
        registry.match([*select, *ignore])
        settled.options(registry, settings)
        target = load_target(where)
        with Progress(sys.stderr, quiet=quiet) as progress:
            tracebacks = Tracebacks(verbose)

            def on_event(event: str, value: Any) -> None:
                progress(event, value)
                tracebacks(event, value)

            report = Run(
                target,
                select=select,
                ignore=ignore,
                config=settled,
                settings=settings,
                baseline=known,
                registry=registry,
                on_event=on_event,
            ).execute()
        if report.interrupted:
            spare_interrupts()
        for form, path in places:
            write_report(report, form, path, stdout, color=color, verbose=verbose, fail_on=settled.fail_on)
    ctx.exit(report.exit_code(settled.fail_on))
