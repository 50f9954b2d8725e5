"""Samples for the terminal, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from debugkit.console.terminal import Page, printable

if TYPE_CHECKING:
    from rich.text import Text

    from debugkit.console.peek import Piece, Role, Sample

STYLES: dict[Role, str] = {
    "text": "",
    "special": "magenta",
    "masked": "bright_black",
    "supervised": "bold green",
    "target": "bold green",
}

_INDENT = 2
_MOST_RUNS = 8
_SHOWN = 600
_WIDTH = 12


def render(samples: Sequence[Sample], page: Page, *, full: bool = False) -> None:
    """Write samples onto a page.

    Args:
        samples: what to show.
        page: where to write.
        full: show long texts to their end.
    """
    for sample in samples:
        page.line(_head(sample))
        for path, text in sample.texts:
            _labelled(page, path, _cut(text, full), "")
        if _in_lines(sample.pieces):
            for piece in sample.pieces:
                _labelled(page, piece.role, _shown(piece, full), STYLES[piece.role])
        elif sample.pieces:
            page.line(_inline(sample.pieces, full), indent=_INDENT)
        for piece in sample.targets:
            _labelled(page, piece.role, _shown(piece, full), STYLES[piece.role])
        for fact in sample.facts:
            page.line(printable(fact), indent=_INDENT, hang=2 * _INDENT)
        page.blank()


def _head(sample: Sample) -> Text:
    from rich.text import Text

    parts = []
    if sample.tokens:
        padding = f", {sample.padding} of them masked" if sample.padding else ""
        parts.append(f"{sample.tokens} tokens{padding}")
    if sample.supervised is not None:
        parts.append(f"{sample.supervised} supervised")
    if sample.label is not None:
        parts.append(f"label {printable(sample.label)}")
    return Text.assemble((printable(sample.name), "bold"), "  " + " · ".join(parts) if parts else "")


def _in_lines(pieces: Sequence[Piece]) -> bool:
    """Whether to give each stretch a line of its own: few of them, some supervised."""
    mixed = any(piece.role == "supervised" for piece in pieces) and not any(piece.label for piece in pieces)
    return mixed and len(pieces) <= _MOST_RUNS


def _inline(pieces: Sequence[Piece], full: bool) -> Text:
    from rich.text import Text

    line = Text()
    for piece in pieces:
        if line and not line.plain.endswith(" "):
            line.append(" ")
        text = printable(piece.text.strip())
        if piece.role == "masked":
            text = _run(piece)
        elif piece.label is not None:
            text = f"{text}/{printable(piece.label)}"
        elif piece.role == "supervised":
            text = f"{text}/="
        line.append(text, style=STYLES[piece.role])
    if len(line) > 4 * _SHOWN and not full:
        cut = len(line) - 4 * _SHOWN
        line = Text.assemble(line[: 3 * _SHOWN], f" … {cut:,} characters more (--full) … ", line[-_SHOWN:])
    return line


def _labelled(page: Page, name: str, text: str, style: str) -> None:
    from rich.text import Text

    head = Text(" " * _INDENT + printable(name))
    page.entry(head, Text(text, style=style), _INDENT + _WIDTH)


def _shown(piece: Piece, full: bool) -> str:
    return _run(piece) if piece.role == "masked" else _cut(piece.text, full)


def _run(piece: Piece) -> str:
    """Masked positions: the first few, and how many."""
    words = printable(piece.text).split()
    if piece.tokens > 1 and len(set(words)) == 1:
        return f"{words[0]} x {piece.tokens}"
    return _cut(piece.text, False, 80) + (f" ({piece.tokens} masked)" if piece.tokens > 1 else "")


def _cut(text: str, full: bool, most: int = _SHOWN) -> str:
    text = printable(text)
    if full or len(text) <= most:
        return text
    head, tail = most * 3 // 4, most // 4
    return f"{text[:head]} … {len(text) - head - tail:,} characters more (--full) … {text[-tail:]}"
