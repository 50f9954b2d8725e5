"""Every check on its own examples, and every healthy example under all checks."""

from __future__ import annotations

import pytest

from debugkit.check import Check
from debugkit.registry import Registry, load
from debugkit.testing import run_example

BUILT_IN = [check for check in load().values() if check.provider == "builtin"]


def examples(prefix: str) -> list[object]:
    return [
        pytest.param(check, name, id=f"{check.id}-{name}")
        for check in BUILT_IN
        for name in sorted(check.examples)
        if name.startswith(prefix)
    ]


@pytest.mark.parametrize(("check", "name"), examples("bad"))
def test_a_broken_example_is_found(check: Check, name: str, registry: Registry) -> None:
    result = run_example(check.examples[name], registry, select=check.id)[check.id]
    assert result.status in ("warn", "fail"), result


@pytest.mark.parametrize(("check", "name"), examples("good"))
def test_a_healthy_example_is_quiet(check: Check, name: str, registry: Registry) -> None:
    report = run_example(check.examples[name], registry)
    assert report[check.id].status == "pass", report[check.id]
    loud = [result for result in report.results if result.status not in ("pass", "skip")]
    assert not loud, loud
    assert not report.notices
