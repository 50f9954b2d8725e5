"""``debugkit new``."""

from __future__ import annotations

from pathlib import Path

import click

from debugkit.commands import options
from debugkit.errors import UsageError


@click.command()
@click.argument("check_id", metavar="ID")
@click.option(
    "--folder", type=Path, default=Path("my_checks"), show_default=True, help="The folder of local checks."
)
@click.option(
    "--family", default="custom", show_default=True, help="The sub-folder, which is the check's family."
)
@options.config
@options.verbose
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
