"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from debugkit import __version__
from debugkit.errors import UsageError, nearest, one_line
from debugkit.render import FORMATS

if TYPE_CHECKING:
    from debugkit.check import Check
    from debugkit.config import Config
    from debugkit.registry import Registry
    from debugkit.report import FailOn, Report
    from debugkit.terminal import Color, Page

COSTS = ("static", "data", "forward", "backward", "training")
FAIL_ON = ("warn", "fail", "never")
COLORS = ("auto", "always", "never")

FOUND, USAGE, INTERRUPTED = 1, 2, 130

_VERBOSE = "debugkit.verbose"


def main() -> None:
    """The ``debugkit`` program."""
    from debugkit.interrupts import take_interrupts
    from debugkit.streams import close_stdout, open_closed

    take_interrupts()
    open_closed()
    try:
        commands(prog_name="debugkit")
    finally:
        close_stdout()


class _Commands(click.Group):
    """Commands whose mistakes end in one sentence on stderr and exit code 2."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_sentence({}):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_sentence(ctx.meta):
            return super().invoke(ctx)


@contextmanager
def _one_sentence(meta: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever is raised inside into the end of the program: a sentence, and an exit code that is not 1."""
    try:
        yield
    except click.exceptions.Exit:
        raise
    except (KeyboardInterrupt, click.Abort) as error:
        raise _exit("interrupted", INTERRUPTED) from error
    except BrokenPipeError as error:
        raise click.exceptions.Exit(USAGE) from error
    except (Exception, SystemExit, GeneratorExit) as error:
        if meta.get(_VERBOSE) and not isinstance(error, click.ClickException):
            traceback.print_exception((error.__cause__ if isinstance(error, UsageError) else None) or error)
        raise _exit(_sentence(error), USAGE) from error


def _exit(sentence: str, code: int) -> click.exceptions.Exit:
    from debugkit.terminal import encodable, printable

    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with suppress(OSError):
        click.echo(encodable(f"debugkit: {printable(sentence)}", encoding), err=True)
    return click.exceptions.Exit(code)


def _sentence(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        text = " ".join(error.format_message().split()).rstrip(".")
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "debugkit"
        return f"{text[:1].lower()}{text[1:]} (see `{command} --help`)"
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError) and error.filename is None:
        return f"standard output can't be written: {error.strerror or one_line(error)}"
    if isinstance(error, SystemExit):
        return f"a file that was loaded ended the program: {one_line(error)} (-v shows the traceback)"
    return f"a bug in debugkit: {one_line(error)} (-v shows the traceback)"


class _Choice(click.Choice):  # type: ignore[type-arg]  # click 8.1 has no `Choice[str]`
    """One of several words; a mistake names the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            self.fail(error.message.rstrip(".") + nearest(str(value), self.choices), param, ctx)


def _remember_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    ctx.meta[_VERBOSE] = value
    return value


def _parts(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


_config = click.option(
    "--config", metavar="FILE", help="A pyproject.toml; by default the nearest one upwards."
)
_color = click.option("--color", type=_Choice(COLORS), default="auto", help="Colour the text on stdout.")
_verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=_remember_verbose,
    help="Show every note, every finding, and the traceback of every mistake.",
)


@click.group(
    cls=_Commands,
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
@click.option(
    "--select", multiple=True, callback=_parts, metavar="IDS", help="Checks to run: ids, families, globs."
)
@click.option("--ignore", multiple=True, callback=_parts, metavar="IDS", help="Checks to leave out.")
@click.option("--fail-on", type=_Choice(FAIL_ON), help="What makes the exit code 1 (default: fail).")
@click.option(
    "--format", "formats", multiple=True, type=_Choice(list(FORMATS)), help="Output format; repeatable."
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Where the format at the same position goes; - is stdout, which is the default.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="ID.OPTION=VALUE",
    help="Set an option of a check or of evidence.",
)
@click.option("--max-cost", type=_Choice(COSTS), help="Leave out what costs more.")
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
    from debugkit.interrupts import spare_interrupts
    from debugkit.spec import Spec
    from debugkit.streams import reserved_stdout

    destinations = _destinations(formats, outputs)
    where = Spec.parse(spec)
    with reserved_stdout() as stdout:
        from debugkit.config import Baseline, Config
        from debugkit.progress import Progress
        from debugkit.registry import load
        from debugkit.runner import Run
        from debugkit.spec import load_target

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
            tracebacks = _Tracebacks(verbose)

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
        for form, path in destinations:
            _write(report, form, path, stdout, color=color, verbose=verbose, fail_on=settled.fail_on)
    ctx.exit(report.exit_code(settled.fail_on))


class _Tracebacks:
    """Prints what crashed, once each, when asked to."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._printed: set[str] = set()

    def __call__(self, event: str, value: Any) -> None:
        if event == "crash" and self._wanted and repr(value) not in self._printed:
            self._printed.add(repr(value))
            traceback.print_exception(value, file=sys.stderr)


def _destinations(formats: Sequence[str], outputs: Sequence[str]) -> list[tuple[str, str]]:
    """``(format, path)`` pairs, with ``-`` for stdout, where exactly one format goes."""
    if len(outputs) > len(formats):
        raise UsageError(f"`--output {outputs[len(formats)]}` has no `--format` at its position")
    pairs = [(form, outputs[index] if index < len(outputs) else "-") for index, form in enumerate(formats)]
    on_stdout = [form for form, path in pairs if path == "-"]
    if len(on_stdout) > 1:
        named = " and ".join(f"`{form}`" for form in on_stdout)
        raise UsageError(f"{named} can't share stdout; give all but one an `--output`")
    files = [path for _, path in pairs if path != "-"]
    for path in files:
        if files.count(path) > 1:
            raise UsageError(f"two formats go to the same `--output {path}`")
        _refuse_unwritable(Path(path))
    return pairs if on_stdout else [*pairs, ("text", "-")]


def _refuse_unwritable(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"`--output {path}` is a folder")
    if path.exists():
        writable = os.access(path, os.W_OK)
    elif not path.parent.is_dir():
        raise UsageError(f"`--output {path}`: there is no folder `{path.parent}`")
    else:
        writable = os.access(path.parent, os.W_OK)
    if not writable:
        raise UsageError(f"`--output {path}` can't be written: permission denied")


def _write(
    report: Report, form: str, path: str, stdout: TextIO, *, color: Color, verbose: bool, fail_on: FailOn
) -> None:
    from debugkit.render import render

    if form == "text":
        from debugkit.render.text import print_report

        if path == "-":
            print_report(report, stdout, color, fail_on=fail_on, verbose=verbose)
            return
    try:
        if path == "-":
            _write_utf8(stdout, render(report, form))
        elif form == "text":
            with open(path, "w", encoding="utf-8") as file:
                print_report(report, file, "never", fail_on=fail_on, verbose=verbose)
        else:
            Path(path).write_text(render(report, form), encoding="utf-8")
    except OSError as error:
        if path == "-":
            raise
        raise UsageError(f"`--output {path}` can't be written: {error.strerror}") from error


def _write_utf8(stdout: TextIO, text: str) -> None:
    """JSON and XML are UTF-8 whatever the locale says."""
    stdout.flush()
    buffer = getattr(stdout, "buffer", None)
    if buffer is None:
        stdout.write(text)
    else:
        buffer.write(text.encode())
    stdout.flush()


@commands.command("list")
@click.option("--format", "form", type=_Choice(["text", "json"]), default="text", help="Output format.")
@_config
@_color
@_verbose
def list_(form: str, config: str | None, color: Color, verbose: bool) -> None:
    """List the checks: id, cost and summary, by family."""
    _, registry = _load(config)
    from debugkit.explain import facts
    from debugkit.terminal import prose

    if form == "json":
        _echo_json([facts(check) for check in registry.values()])
        return
    page = _page(color)
    width = max((len(check.id) for check in registry.values()), default=0) + 2
    costs = max(map(len, COSTS)) + 2
    column = 2 + width + costs
    for family in registry.families:
        page.line(prose(family, "bold"))
        for one in registry.values():
            if one.family == family:
                head = prose(f"  {one.id:<{width}}")
                head.append(f"{one.cost:<{costs}}", "dim")
                page.entry(head, prose(one.summary), column)
        page.blank()
    page.line(f"{len(registry)} checks · `debugkit explain ID` tells more about one")
    page.show()


@commands.command()
@click.argument("check_id", metavar="ID")
@_config
@_color
@_verbose
def explain(check_id: str, config: str | None, color: Color, verbose: bool) -> None:
    """Explain a check: why it matters, what to do, its options."""
    _, registry = _load(config)
    from debugkit.explain import explain as write

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
    from debugkit.registry import load
    from debugkit.scaffold import write_check

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
    from debugkit.streams import reserved_stdout

    with reserved_stdout() as stdout:
        _, registry = _load(config)
        chosen = registry.match(_parts(ctx, ctx.command.params[0], ids) or ["all"])
        checks = [check for check in registry.values() if check.id in chosen]
        wrong = sum(_test(check, registry, stdout, color, verbose) for check in checks)
        page = _page(color, stdout)
        page.line(f"checks tested: {len(checks)}, problems: {wrong or 'none'}")
        page.show()
    ctx.exit(FOUND if wrong else 0)


def _test(check: Check, registry: Registry, stdout: TextIO, color: Color, verbose: bool) -> int:
    """Print a line per example; the number of things that are wrong."""
    from debugkit.terminal import prose
    from debugkit.testing import judge_example

    page = _page(color, stdout)
    page.line(prose(check.id, "bold"))
    page.show()
    wrong = 0
    for name in check.examples:
        try:
            outcome = judge_example(check, name, registry)
        except Exception as error:
            if verbose:
                traceback.print_exception(error, file=sys.stderr)
            ok, said = False, f"raised {one_line(error)}"
        else:
            result = outcome.result
            active = result.active or result.findings
            ok = outcome.ok
            said = f"{result.status}: {result.reason or (active[0].message if active else 'nothing said')}"
        wrong += not ok
        page = _page(color, stdout)
        head = prose(f"  {'✓' if ok else '✗'} ", "green" if ok else "red") + prose(name)
        page.line(head, prose(f": {said}"), hang=6)
        page.show()
    for kind in ("good", "bad"):
        if not any(name.startswith(kind) for name in check.examples):
            wrong += 1
            page = _page(color, stdout)
            page.line(prose(f"  ✗ has no `{kind}*()` example", "red"))
            page.show()
    return wrong


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
    from debugkit.terminal import Page

    return Page(file or sys.stdout, color)


def _echo_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))
