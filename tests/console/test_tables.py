"""The table of checks in the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from debugkit import UsageError
from debugkit.console.tables import BEGIN, END, main, table, updated
from debugkit.registry import Registry

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_lists_the_checks_as_they_are(registry: Registry) -> None:
    text = README.read_text(encoding="utf-8")
    assert text == updated(text, registry), "run `python -m debugkit.console.tables README.md`"


def test_a_file_is_updated_in_place(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main([str(path)])
    assert path.read_text() == f"before\n{BEGIN}\n\n{table(registry)}\n\n{END}\nafter\n"
    assert "| `logits-vs-probs` | loss |" in path.read_text()


def test_a_file_without_a_place_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="no place for the table"):
        updated("text", registry)
