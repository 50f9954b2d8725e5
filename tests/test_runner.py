"""The runner: what becomes of findings, refusals, crashes, budgets and Ctrl-C."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from debugkit import Finding, Target, Unavailable, UsageError, fail, note, warn
from debugkit.check import Check
from debugkit.errors import Broken
from debugkit.registry import Registry
from debugkit.runner import Run
from debugkit.testing import mlp

alive: list[weakref.ref[Any]] = []


class Big:
    @staticmethod
    def collect(target: Target) -> Big:
        big = Big()
        alive.append(weakref.ref(big))
        return big


class Bigger:
    @staticmethod
    def collect(big: Big) -> Bigger:
        return Bigger()


class Crashing:
    @staticmethod
    def collect(target: Target) -> Crashing:
        raise IndexError("past the end")


def a_reads_big(big: Big) -> Iterator[Finding]:
    """Reads."""
    yield note("big")


def b_reads_bigger(bigger: Bigger) -> Iterator[Finding]:
    """Reads more."""
    gc.collect()
    yield note(f"{sum(ref() is not None for ref in alive)} alive")


def c_knows_nothing(target: Target) -> Iterator[Finding]:
    """Looks at the target."""
    gc.collect()
    yield note(f"{sum(ref() is not None for ref in alive)} alive")


def mixed(target: Target) -> Iterator[Finding]:
    """Finds."""
    yield warn("1 odd")
    yield fail("2 broken")
    yield note("3 seen")


def refuses(target: Target) -> Iterator[Finding]:
    """Refuses."""
    raise Unavailable("nothing to look at")
    yield


def breaks(target: Target) -> Iterator[Finding]:
    """Meets a broken program."""
    raise Broken("the step raised (train.py:3): ValueError: no")
    yield


def crashes(target: Target) -> Iterator[Finding]:
    """Crashes half way."""
    yield warn("1 odd")
    raise ValueError("bug\nin two lines")


def measures_badly(crashing: Crashing) -> Iterator[Finding]:
    """Needs what crashes."""
    yield note("never")


def yields_text(target: Target) -> Iterator[Finding]:
    """Yields text."""
    yield "found it"  # type: ignore[misc]


def interrupts(target: Target) -> Iterator[Finding]:
    """Is interrupted."""
    raise KeyboardInterrupt
    yield


def ends_the_program(target: Target) -> Iterator[Finding]:
    """Calls sys.exit."""
    raise SystemExit(0)
    yield


def closes_a_generator(target: Target) -> Iterator[Finding]:
    """Is closed."""
    raise GeneratorExit
    yield


def run(*functions: Callable[..., Iterator[Finding]], **options: Any) -> Run:
    alive.clear()
    registry = Registry([Check(function, "family", "test") for function in functions])
    return Run(Target(mlp()), registry=registry, **{"config": {}, **options})


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (mixed, "fail", None),
        (refuses, "skip", "nothing to look at"),
        (breaks, "error", "the step raised (train.py:3): ValueError: no"),
        (crashes, "error", "the check crashed: ValueError: bug in two lines"),
        (ends_the_program, "error", "the check tried to end the program: SystemExit: 0"),
        (closes_a_generator, "error", "the check tried to end the program: GeneratorExit"),
        (measures_badly, "error", "a measurement crashed: IndexError: past the end"),
        (
            yields_text,
            "error",
            "the check crashed: TypeError: it yielded a `str`, which is no finding",
        ),
    ],
)
def test_statuses(function: Callable[..., Iterator[Finding]], status: str, reason: str | None) -> None:
    events: list[str] = []
    result = run(function, on_event=lambda event, value: events.append(event)).execute().results[0]
    assert (result.status, result.reason) == (status, reason)
    assert ("crash" in events) == (status == "error")


def test_a_crash_leaves_the_other_checks_alone() -> None:
    report = run(crashes, mixed).execute()
    assert report["mixed"].status == "fail"
    assert report.exit_code("never") == 2


def test_evidence_is_released_when_no_later_check_needs_it() -> None:
    report = run(a_reads_big, b_reads_bigger, c_knows_nothing).execute()
    assert report["b-reads-bigger"].findings[0].message == "1 alive"
    assert report["c-knows-nothing"].findings[0].message == "0 alive"
    assert list(report.evidence_seconds) == ["big", "bigger"]


def test_single_judgements_share_and_release_evidence() -> None:
    one = run(a_reads_big, b_reads_bigger, c_knows_nothing)
    one.judge("a-reads-big")
    assert len(alive) == 1
    assert one.judge("b-reads-bigger").findings[0].message == "1 alive"
    assert one.judge("c-knows-nothing").findings[0].message == "0 alive"
    assert len(alive) == 1
    assert len(one.report().results) == 3


def test_close_releases_what_is_left() -> None:
    one = run(a_reads_big, b_reads_bigger)
    one.judge("a-reads-big")
    one.close()
    gc.collect()
    assert alive[0]() is None


def test_an_interrupt_ends_in_a_partial_report() -> None:
    report = run(a_reads_big, interrupts, mixed).execute()
    assert report.interrupted
    assert report.exit_code() == 130
    assert report["a-reads-big"].status == "pass"
    assert report["mixed"].reason == "interrupted before it was judged"


def test_a_used_up_budget_skips() -> None:
    report = run(mixed, config={"budget": 1e-9}).execute()
    assert report["mixed"].status == "skip"
    assert "budget" in str(report["mixed"].reason)


def test_only_a_target_is_taken() -> None:
    with pytest.raises(UsageError, match=r"expected a `debugkit.Target`, not a `Sequential`"):
        Run(mlp())  # type: ignore[arg-type]
