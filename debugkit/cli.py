"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from debugkit import __version__
from debugkit.console.mistakes import Choice, Commands, Tracebacks, remember_verbose
from debugkit.console.outputs import destinations, write_report
from debugkit.errors import UsageError
from debugkit.render import FORMATS

if TYPE_CHECKING:
    from debugkit.config import Config
    from debugkit.console.terminal import Color, Page
    from debugkit.data.rows import Split
    from debugkit.registry import Registry
    from debugkit.report import FailOn

COSTS = ("static", "data", "forward", "backward", "training")
FAIL_ON = ("warn", "fail", "never")
COLORS = ("auto", "always", "never")

FOUND = 1

_watched: list[str] = []
"""The program that was run under watch: standard output is its own to the end."""


def main() -> None:
    """The ``debugkit`` program."""
    from debugkit.console.streams import close_stdout, open_closed
    from debugkit.state.interrupts import take_interrupts

    take_interrupts()
    open_closed()
    try:
        commands(prog_name="debugkit")
    finally:
        if not _watched:
            close_stdout()


def _parts(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


_config = click.option(
    "--config", metavar="FILE", help="A pyproject.toml; by default the nearest one upwards."
)
_select = click.option(
    "--select", multiple=True, callback=_parts, metavar="IDS", help="Checks to run: ids, families, globs."
)
_ignore = click.option("--ignore", multiple=True, callback=_parts, metavar="IDS", help="Checks to leave out.")
_fail_on = click.option("--fail-on", type=Choice(FAIL_ON), help="What makes the exit code 1 (default: fail).")
_formats = click.option(
    "--format", "formats", multiple=True, type=Choice(list(FORMATS)), help="Output format; repeatable."
)
_outputs = click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Where the format at the same position goes; - is stdout, which is the default.",
)
_settings = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="ID.OPTION=VALUE",
    help="Set an option of a check or of evidence.",
)
_color = click.option("--color", type=Choice(COLORS), default="auto", help="Colour the text on stdout.")
_verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=remember_verbose,
    help="Show every note, every finding, and the traceback of every mistake.",
)


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


@commands.command()
@click.argument("spec")
@_select
@_ignore
@_fail_on
@_formats
@_outputs
@_settings
@click.option("--max-cost", type=Choice(COSTS), help="Leave out what costs more.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Begin no check after this time.",
)
@click.option("--seed", type=click.IntRange(min=0), help="What every measurement starts from (default: 0).")
@click.option("--baseline", metavar="FILE", help="A JSON report whose findings do not count again.")
@_config
@_color
@_verbose
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


@commands.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is a module's name.")
@_select
@_ignore
@click.option(
    "--stop-on",
    type=Choice(FAIL_ON),
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
@_formats
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Where the format at the same position goes; - is stderr, which is the default.",
)
@_config
@_color
@_verbose
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
    _watched.append(script)
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


@commands.command()
@click.argument("path")
@click.option("--compare", metavar="PATH", help="Another checkpoint: show what moved from PATH to it.")
@click.option("--base", metavar="PATH", help="The base model of a LoRA adapter, to merge it with.")
@_select
@_ignore
@_fail_on
@_formats
@_outputs
@_settings
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Begin no layer that would not end within this time.",
)
@click.option("--layers", metavar="FILE", help="Write the measures of every layer as .csv or .json.")
@click.option("--plot", metavar="FILE.svg", help="Draw alpha, alpha by depth, and one layer's spectrum.")
@click.option("--layer", metavar="NAME", help="The layer whose spectrum is shown (default: the worst).")
@_config
@_color
@_verbose
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


@commands.command("list")
@click.option("--format", "form", type=Choice(["text", "json"]), default="text", help="Output format.")
@_config
@_color
@_verbose
def list_(form: str, config: str | None, color: Color, verbose: bool) -> None:
    """List the checks: id, cost and summary, by family."""
    _, registry = _load(config)
    from debugkit.console.explain import contents, facts

    if form == "json":
        _echo_json([facts(check) for check in registry.values()])
        return
    page = _page(color)
    contents(registry, page)
    page.show()


@commands.command()
@click.argument("spec")
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True, help="How many to show.")
@click.option(
    "--split", type=Choice(["train", "eval"]), default="train", show_default=True, help="The loader."
)
@click.option("--full", is_flag=True, help="Show long texts to their end.")
@_color
@_verbose
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
        page = _page(color, stdout)
        render(found, page, full=full)
        page.show()


@commands.command()
@click.argument("check_id", metavar="ID")
@_config
@_color
@_verbose
def explain(check_id: str, config: str | None, color: Color, verbose: bool) -> None:
    """Explain a check: why it matters, what to do, its options."""
    _, registry = _load(config)
    from debugkit.console.explain import explain as write

    page = _page(color)
    write(registry[check_id], page)
    page.show()


@commands.command()
@click.argument("check_id", metavar="ID")
@click.option(
    "--folder", type=Path, default=Path("my_checks"), show_default=True, help="The folder of local checks."
)
@click.option(
    "--family", default="custom", show_default=True, help="The sub-folder, which is the check's family."
)
@_config
@_verbose
def new(check_id: str, folder: Path, family: str, config: str | None, verbose: bool) -> None:
    """Write a working check file to start from."""
    from debugkit.config import Config
    from debugkit.console.scaffold import write_check
    from debugkit.registry import load

    settled = Config.read(config)
    registry = load(loaded for loaded in settled.load if loaded.is_dir())
    if check_id in registry:
        raise UsageError(f"check `{check_id}` exists already at {registry[check_id].place}")
    path = write_check(check_id, folder, family)
    click.echo(f"wrote {path}")
    if folder.resolve() not in [loaded.resolve() for loaded in settled.load]:
        click.echo(f'load it: in pyproject.toml, under [tool.debugkit], set load = ["{folder.as_posix()}"]')
    click.echo(f"then try it: debugkit test {check_id}")


@commands.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_config
@_color
@_verbose
@click.pass_context
def test(ctx: click.Context, ids: tuple[str, ...], config: str | None, color: Color, verbose: bool) -> None:
    """Run checks on their own good and bad examples.

    ID is an id, a family or a glob; all checks by default.

    Exit codes: 0 every good example passes and every bad one is flagged, 1 not so, 2 usage error.
    """
    from debugkit.console.streams import reserved_stdout

    with reserved_stdout() as stdout:
        _, registry = _load(config)
        from debugkit.console.examples import show_examples

        chosen = registry.match(_parts(ctx, ctx.command.params[0], ids) or ["all"])
        checks = [check for check in registry.values() if check.id in chosen]
        wrong = sum(show_examples(check, registry, stdout, color, verbose=verbose) for check in checks)
        page = _page(color, stdout)
        page.line(f"checks tested: {len(checks)}, problems: {wrong or 'none'}")
        page.show()
    ctx.exit(FOUND if wrong else 0)


@commands.command()
def schema() -> None:
    """Print the JSON Schema of the JSON report."""
    from debugkit.report import Report

    _echo_json(Report.schema_of())


@commands.command()
def version() -> None:
    """Print the versions that matter in a bug report."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    click.echo(f"debugkit {__version__}")
    click.echo(f"python {platform.python_version()} ({platform.platform()})")
    for name in ("torch", "transformers"):
        try:
            click.echo(f"{name} {installed(name)}")
        except PackageNotFoundError:
            click.echo(f"{name} not installed")


def _load(config: str | None) -> tuple[Config, Registry]:
    from debugkit.config import Config
    from debugkit.registry import load

    settled = Config.read(config)
    return settled, load(settled.load)


def _page(color: Color, file: TextIO | None = None) -> Page:
    from debugkit.console.terminal import Page

    return Page(file or sys.stdout, color)


def _echo_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))
