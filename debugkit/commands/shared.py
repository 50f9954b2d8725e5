"""What commands share besides options."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from debugkit.config import Config
    from debugkit.console.terminal import Color, Page
    from debugkit.registry import Registry


def load_checks(config: str | None) -> tuple[Config, Registry]:
    from debugkit.config import Config
    from debugkit.registry import load

    settled = Config.read(config)
    return settled, load(settled.load)


def page_on(color: Color, file: TextIO | None = None) -> Page:
    from debugkit.console.terminal import Page

    return Page(file or sys.stdout, color)


def echo_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))
