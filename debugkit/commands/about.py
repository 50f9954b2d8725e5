"""``debugkit schema`` and ``debugkit version``."""

from __future__ import annotations

import click

from debugkit import __version__
from debugkit.commands.shared import echo_json


@click.command()
def schema() -> None:
    """Print the JSON Schema of the JSON report."""
    from debugkit.report import Report

    echo_json(Report.schema_of())


@click.command()
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
