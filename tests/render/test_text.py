from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len

from debugkit.finding import note
from debugkit.render.text import print_report, render
from debugkit.report import Report, Result

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def printed(report: Report, **options: object) -> str:
    file = io.StringIO()
    print_report(report, file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_plain_text_has_no_control_characters(report: Report) -> None:
    text = render(report)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert r"\x1b[31mred\x1b[0m [unused1] [/INST] [bold]x[/] <b>&amp;\x00\u202e" in text
    assert r"and\nnewline 日本語" in " ".join(text.split())


def test_colour_adds_nothing_but_colour(report: Report) -> None:
    colored = printed(report, color="always")
    assert ANSI.search(colored)
    assert ANSI.sub("", colored) == render(report)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_lines_fit_the_width(report: Report, width: int) -> None:
    lines = printed(report, width=width).splitlines()
    assert all(line == line.rstrip() for line in lines)
    if width >= 40:
        assert max(map(cell_len, lines)) <= width


def test_findings_name_place_and_hint(report: Report) -> None:
    text = render(report)
    assert "at train.py:41 in `head.1`" in text
    assert "→ pass the raw logits" in text
    assert "at `train[3]`" in text


def test_the_gravest_finding_comes_first(report: Report) -> None:
    text = render(report)
    assert text.index("x1b[31m") < text.index("warn: the minor one")


def test_skips_with_one_reason_are_one_entry(report: Report) -> None:
    text = render(report)
    assert text.count("the target has no tokenizer") == 1
    assert "padding, truncation" in text


def test_many_findings_are_cut_unless_verbose(report: Report) -> None:
    assert "class 4 is rare" not in render(report)
    assert "… and 5 more (-v shows them)" in render(report)
    assert "class 8 is rare" in printed(report, verbose=True)


def test_notes_beyond_the_first_need_verbose(report: Report) -> None:
    assert "no NaN" in render(report)
    assert "a second note" not in render(report)
    assert "a second note" in printed(report, verbose=True)


def test_suppressed_findings_are_counted_and_shown_when_verbose(report: Report) -> None:
    assert "1 suppressed" in render(report)
    assert "linear probing" not in render(report)
    assert "frozen (linear probing on purpose)" in printed(report, verbose=True)


@pytest.mark.parametrize(
    ("encoding", "glyph"),
    [("utf-8", "✗"), ("ascii", "x text-quality"), ("cp1252", "x text-quality"), ("cp932", "日")],
)
def test_any_encoding_can_take_it(report: Report, encoding: str, glyph: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_report(report, file)
    file.seek(0)
    assert glyph in file.read()


def test_last_line_says_what_the_exit_code_means(report: Report, empty: Report) -> None:
    assert printed(report, fail_on="fail").splitlines()[-1].endswith("exit 2: incomplete")
    assert printed(empty, fail_on="fail").splitlines()[-1].endswith("exit 3: nothing was checked")
    clean = Report(
        debugkit_version="0",
        target="t",
        results=(Result(check="a", family="f", status="pass", findings=(note("n"),)),),
    )
    assert printed(clean, fail_on="warn").splitlines()[-1] == "1 passed in 0.0 s · exit 0: clean"
    assert "exit" not in render(report).splitlines()[-1]


def test_a_long_report_names_what_needs_a_look_again(report: Report) -> None:
    passes = tuple(Result(check=f"check-{i}", family="z", status="pass") for i in range(30))
    text = render(report.model_copy(update={"results": report.results + passes}))
    assert "failed: text-quality, logits-vs-probs\nwarned: label-balance\nnot completed: overfit\n" in text


def test_no_color_is_respected(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    print_report(report, terminal)
    assert ANSI.search(terminal.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    print_report(report, terminal)
    assert not ANSI.search(terminal.getvalue())
    assert ANSI.search(printed(report, color="always"))
