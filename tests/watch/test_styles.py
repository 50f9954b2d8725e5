"""Programs as people write them are quiet under watch, and do the same as without."""

from __future__ import annotations

import re

import pytest

from .programs import SCRIPTS, plain, watched

STYLES = [
    (path.name, kind)
    for path in sorted(SCRIPTS.glob("styles_*.py"))
    for kind in re.findall(r"^def (\w+)\(\):", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize(("script", "kind"), STYLES)
def test_the_program_is_quiet_and_the_same(script: str, kind: str) -> None:
    if "libraries" in script:
        for package in ("transformers", "accelerate", "peft", "lightning"):
            pytest.importorskip(package)
    seen, alone = watched(script, kind), plain(script, kind)
    assert seen.error == "None"
    assert alone.printed
    assert seen.printed == alone.printed
    assert not seen.loud
