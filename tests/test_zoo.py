"""Every mistake in the zoo is found by its check, and every healthy twin is quiet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from debugkit.registry import Registry, load
from debugkit.testing import run_example

from .zoo import Pair, load_zoo

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


@pytest.mark.parametrize("pair", load_zoo().values(), ids=lambda pair: pair.name)
def test_the_mistake_is_found(pair: Pair, registry: Registry, record_property: Record) -> None:
    result = run_example(pair.example(broken=True), registry, select=pair.check)[pair.check]
    record_property("zoo", f"{result.family} {'found' if result.status == pair.level else 'missed'}")
    said = [f"{f.level}: {f.message} ({f.where}, {f.location})" for f in result.findings]
    assert result.status == pair.level, (result.reason, said)
    assert pair.where is None or any(pair.where in line for line in said), said


@pytest.mark.parametrize("pair", load_zoo().values(), ids=lambda pair: pair.name)
def test_the_healthy_twin_is_quiet(pair: Pair, registry: Registry, record_property: Record) -> None:
    report = run_example(pair.example(broken=False), registry)
    family = registry[pair.check].family
    record_property("zoo", f"{family} {report.status if report.status in ('warn', 'fail') else 'quiet'}")
    loud = {
        result.check: result.reason or [f.message for f in result.active]
        for result in report.results
        if result.status in ("warn", "fail", "error")
    }
    assert not loud
