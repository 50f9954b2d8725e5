"""Mistakes on the command line: each ends in one sentence on stderr, and in an exit code that is not 1."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click

from debugkit.errors import UsageError, nearest, one_line

_USAGE, _INTERRUPTED = 2, 130

_VERBOSE = "debugkit.verbose"


class Commands(click.Group):
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
        raise _exit("interrupted", _INTERRUPTED) from error
    except BrokenPipeError as error:
        raise click.exceptions.Exit(_USAGE) from error
    except (Exception, SystemExit, GeneratorExit) as error:
        if meta.get(_VERBOSE) and not isinstance(error, click.ClickException):
            traceback.print_exception((error.__cause__ if isinstance(error, UsageError) else None) or error)
        raise _exit(_sentence(error), _USAGE) from error


def _exit(sentence: str, code: int) -> click.exceptions.Exit:
    from debugkit.console.terminal import encodable, printable

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


class Choice(click.Choice):  # type: ignore[type-arg]  # click 8.1 has no `Choice[str]`
    """One of several words; a mistake names the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            self.fail(error.message.rstrip(".") + nearest(str(value), self.choices), param, ctx)


def remember_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """The callback of ``--verbose``: from here on, mistakes show their traceback."""
    ctx.meta[_VERBOSE] = value
    return value


class Tracebacks:
    """Prints what crashed, once each, when asked to."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._printed: set[str] = set()

    def __call__(self, event: str, value: Any) -> None:
        if event == "crash" and self._wanted and repr(value) not in self._printed:
            self._printed.add(repr(value))
            traceback.print_exception(value, file=sys.stderr)
