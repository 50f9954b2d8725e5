"""Which checks a moment plans: those whose evidence can be built from what it hands over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from debugkit import Finding, Target, UsageError, note
from debugkit.check import Check
from debugkit.evidence import Deadline, Ledger, buildable, is_evidence, is_root, root
from debugkit.registry import Registry, load
from debugkit.runner import Run
from debugkit.signature import read_signature
from debugkit.testing import mlp


@root
@dataclass(frozen=True)
class Tape:
    """What another moment hands over."""

    name: str | None = None


class Length:
    @staticmethod
    def collect(tape: Tape, deadline: Deadline) -> Length:
        return Length()


class Size:
    """Can be built in either moment."""

    @staticmethod
    def collect(target: Target | None, length: Length | None, deadline: Deadline) -> tuple[bool, bool]:
        return target is not None, length is not None


@root
@dataclass(frozen=True)
class Other:
    """A moment that has neither."""

    name: str | None = None


def of_target(target: Target) -> Iterator[Finding]:
    """Reads a target."""
    yield note("target")


def of_tape(length: Length) -> Iterator[Finding]:
    """Reads a tape."""
    yield note("tape")


def of_either(size: Size) -> Iterator[Finding]:
    """Reads what both have."""
    yield note(f"{size}")


def of_both(target: Target, tape: Tape | None) -> Iterator[Finding]:
    """Reads a target, and a tape where there is one."""
    yield note(f"{tape}")


def of_nothing() -> Iterator[Finding]:
    """Reads nothing."""
    yield note("nothing")


CHECKS = (of_target, of_tape, of_either, of_both, of_nothing)


def run(given: Any) -> Run:
    registry = Registry([Check(function, "family", "test") for function in CHECKS])
    return Run(given, registry=registry, config={})


@pytest.mark.parametrize(
    ("given", "planned", "size"),
    [
        (Target(mlp()), {"of-target", "of-either", "of-both", "of-nothing"}, "(True, False)"),
        (Tape(), {"of-tape", "of-either", "of-nothing"}, "(False, True)"),
    ],
)
def test_a_moment_plans_what_it_can_build(given: object, planned: set[str], size: str) -> None:
    report = run(given).execute()
    assert {result.check for result in report.results} == planned
    assert {result.status for result in report.results} == {"pass"}
    assert report["of-either"].findings[0].message == size


def test_a_single_check_is_judged_in_its_moment() -> None:
    begun = run(Tape(name="a tape"))
    assert begun.judge("of-tape").status == "pass"
    assert begun.report().target == "a tape"
    assert run(Tape()).report().target == "Tape"


def test_only_what_is_marked_is_a_root() -> None:
    class Copy(Tape):
        pass

    assert [is_root(kind) for kind in (Tape, Target, Deadline, Copy, Length, int)] == [True] * 3 + [False] * 3
    assert is_evidence(Tape)
    assert buildable(read_signature(of_nothing), [])
    with pytest.raises(UsageError, match=r"expected a `debugkit\.Target`, not a `Copy`"):
        run(Copy())


def test_another_moments_root_is_unavailable() -> None:
    needs = read_signature(of_both)
    assert Ledger({Target: Target(mlp())}).arguments(needs)[1] is None


def test_a_target_has_every_built_in_check_but_those_of_other_moments() -> None:
    registry = load()
    absent = set(registry) - {check.id for check in Run(Target(mlp()), config={}, registry=registry).plan}
    assert {registry[name].family for name in absent} <= {"loop"}


def test_a_deadline_alone_plans_nothing() -> None:
    assert [check.id for check in run(Other()).plan] == ["of-nothing"]
