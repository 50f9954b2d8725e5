"""The terminal: what it can show, and untrusted text on it."""

from __future__ import annotations

import io
import os
import shutil
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.text import Text

Color = Literal["auto", "always", "never"]

PIPED_WIDTH = 100
WIDEST = 120
NARROWEST = 20

ASCII = {"✓": "+", "✗": "x", "·": "-", "→": "->", "…": "...", "—": "-"}
"""What stands in for the characters that debugkit itself prints, where they can't be encoded."""


def printable(text: str) -> str:
    r"""The text with every character that is no ink written as an escape, such as ``\x1b``.

    Terminal sequences, line breaks, invisible and direction-changing characters show instead of acting.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\u3000" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def prose(text: str, style: str = "") -> Text:
    """Untrusted text for the terminal: never markup, identifiers in backticks highlighted."""
    from rich.text import Text

    shown = Text(printable(text), style=style)
    shown.highlight_regex(r"`[^`]+`", "cyan")
    return shown


def wants_color(file: TextIO, choice: Color | None = None) -> bool:
    """Whether to colour: as chosen, else on a terminal without ``NO_COLOR``."""
    if choice in ("always", "never"):
        return choice == "always"
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return not plain and is_terminal(file)


def is_terminal(file: TextIO) -> bool:
    """Whether the file is an open terminal."""
    try:
        return file.isatty()
    except (AttributeError, ValueError):
        return False


class Page:
    """Lines for a terminal or a pipe, wrapped to its width and written at once.

    Args:
        file: where the page will be written.
        color: whether to colour; by default as :func:`wants_color` says.
        width: columns; by default the terminal's, at most 120, and 100 in a pipe.
    """

    def __init__(self, file: TextIO, color: Color | None = None, width: int | None = None) -> None:
        from rich.console import Console

        self._file = file
        self._encoding = getattr(file, "encoding", None) or "utf-8"
        if width is None:
            terminal = shutil.get_terminal_size((PIPED_WIDTH, 24)).columns
            width = min(terminal, WIDEST) if is_terminal(file) else PIPED_WIDTH
        self.width = max(width, NARROWEST)
        colored = wants_color(file, color)
        self._console = Console(
            file=io.StringIO(),
            width=self.width,
            force_terminal=colored,
            color_system="standard" if colored else None,
            no_color=not colored,
            legacy_windows=False,
            markup=False,
            highlight=False,
            emoji=False,
        )

    def line(self, *parts: str | Text, indent: int = 0, hang: int | None = None) -> None:
        """Add a paragraph.

        Args:
            parts: joined without a space; strings are printed as they are.
            indent: columns before the first line.
            hang: columns before the following lines; ``indent`` by default.
        """
        from rich.text import Text

        hang = indent if hang is None else hang
        self._write(Text(" " * indent), Text.assemble(*parts), hang, self.width - max(indent, hang))

    def entry(self, head: Text, body: Text, column: int) -> None:
        """Add a paragraph that starts at ``column``, with ``head`` to the left of it or above it."""
        from rich.text import Text

        if head.cell_len > column:
            self.line(head)
            head = Text()
            if not body:
                return
        head.append(" " * (column - head.cell_len))
        self._write(head, body, column, self.width - column)

    def _write(self, margin: Text, body: Text, hang: int, width: int) -> None:
        from rich.text import Text

        for line in body.wrap(self._console, max(NARROWEST, width)) if body else [body]:
            whole = margin + line
            whole.rstrip()
            self._console.print(whole, soft_wrap=True)
            margin = Text(" " * hang)

    def blank(self) -> None:
        """Add an empty line."""
        self._console.print()

    @property
    def text(self) -> str:
        """The page so far, in characters that the file can take."""
        output = self._console.file
        assert isinstance(output, io.StringIO)
        return encodable(output.getvalue(), self._encoding)

    def show(self) -> None:
        """Write the page."""
        self._file.write(self.text)
        self._file.flush()


def encodable(text: str, encoding: str) -> str:
    """The text with what the encoding lacks replaced, by plain ASCII where there is a counterpart."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for char, plain in ASCII.items():
            text = text.replace(char, plain)
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text
