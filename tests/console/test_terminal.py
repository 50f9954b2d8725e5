from __future__ import annotations

import io

import pytest
from rich.text import Text

from debugkit.console.terminal import Page, encodable, printable, prose


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [b] text ✓ 日本語　é", "plain [b] text ✓ 日本語　é"),
        ("\x1b[31m\r\n\t\x00\x7f\x9b", r"\x1b[31m\r\n\t\x00\x7f\x9b"),
        ("a\u202eb\u200bc\u2028d", r"a\u202eb\u200bc\u2028d"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_no_ink_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_markup_is_text() -> None:
    assert prose("[bold]a[/bold] [/INST] :smile:").plain == "[bold]a[/bold] [/INST] :smile:"


def test_encodings_get_what_they_can_take() -> None:
    assert encodable("✓ → é 日", "utf-8") == "✓ → é 日"
    assert encodable("✓ → é 日", "latin-1") == r"+ -> é \u65e5"
    assert encodable("✓", "ascii") == "+"


def test_paragraphs_hang() -> None:
    page = Page(io.StringIO(), width=24)
    page.line("one two three four five six", indent=2, hang=4)
    assert page.text == "  one two three four\n    five six\n"


def test_entries_start_at_their_column_or_below_a_long_head() -> None:
    page = Page(io.StringIO(), width=40)
    page.entry(Text("head"), Text("body"), 8)
    page.entry(Text("a longer head"), Text("body"), 8)
    page.entry(Text("head"), Text(""), 8)
    assert page.text == "head    body\na longer head\n        body\nhead\n"
