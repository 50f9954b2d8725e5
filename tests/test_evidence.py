"""The ledger: each kind of evidence once, refusals remembered, values released."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest

from debugkit import Target, Unavailable, UsageError
from debugkit.errors import Broken
from debugkit.evidence import (
    Cost,
    Deadline,
    Kind,
    Ledger,
    Refusal,
    closure,
    collector,
    cost_of,
    evidence_id,
    is_evidence,
)
from debugkit.signature import Signature
from debugkit.testing import mlp

calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


class Root:
    cost: ClassVar[Cost] = "data"

    @staticmethod
    def collect(target: Target) -> Root:
        calls.append("root")
        return Root()


class Twice:
    cost: ClassVar[Cost] = "backward"

    @staticmethod
    def collect(root: Root, *, factor: int = 2) -> int:
        calls.append("twice")
        return factor


class Refused:
    @staticmethod
    def collect(root: Root) -> Refused:
        calls.append("refused")
        raise Unavailable("the target has no tokenizer; pass Target(tokenizer=...)")


class Crashes:
    @staticmethod
    def collect(target: Target) -> Crashes:
        calls.append("crashes")
        raise ZeroDivisionError("of zero")


class Fails:
    @staticmethod
    def collect(target: Target) -> Fails:
        calls.append("fails")
        raise Broken("the step raised")


class Hopeful:
    @staticmethod
    def collect(refused: Refused | None, costly: Twice | None) -> tuple[object, object]:
        return refused, costly


class Circle:
    @staticmethod
    def collect(around: Around) -> Circle: ...  # type: ignore[empty-body]


class Around:
    @staticmethod
    def collect(circle: Circle | None) -> Around: ...  # type: ignore[empty-body]


class Pool:
    closed = False

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def collect() -> Pool:
        return Pool()


class Priceless:
    cost = "priceless"

    @staticmethod
    def collect(target: Target) -> Priceless: ...  # type: ignore[empty-body]


def ledger(max_cost: Cost = "training") -> Ledger:
    return Ledger({Target: Target(mlp())}, max_cost=max_cost)


def signature_of(kind: Kind) -> Signature:
    return collector(kind)


def test_a_kind_is_collected_once() -> None:
    book = ledger()
    assert book.get(Twice) == 2
    assert book.get(Twice) == 2
    assert isinstance(book.get(Root), Root)
    assert calls == ["root", "twice"]
    assert set(book.seconds) == {"root", "twice"}


def test_options_reach_the_collector() -> None:
    options = {"twice": collector(Twice).options(factor=5)}
    assert Ledger({Target: Target(mlp())}, options).get(Twice) == 5


@pytest.mark.parametrize(
    ("kind", "error"), [(Refused, Unavailable), (Fails, Broken), (Crashes, ZeroDivisionError)]
)
def test_a_failed_measurement_is_remembered(kind: Kind, error: type[Exception]) -> None:
    book = ledger()
    for _ in range(2):
        with pytest.raises(error):
            book.get(kind)
    assert calls.count(evidence_id(kind)) == 1


def test_an_optional_need_that_is_refused_is_none() -> None:
    assert ledger().get(Hopeful) == (None, 2)


def test_what_costs_too_much_is_refused() -> None:
    book = ledger(max_cost="forward")
    with pytest.raises(Unavailable, match="`twice` costs more than the limit `forward`"):
        book.get(Twice)
    assert book.get(Hopeful) == (None, None)
    assert "twice" not in calls


def test_released_values_are_freed() -> None:
    book = ledger()
    book.get(Twice)
    root = weakref.ref(book.get(Root))
    book.release([Refused])
    assert root() is not None
    with pytest.raises(Unavailable):
        book.get(Refused)
    book.release([Refused])
    assert root() is None
    with pytest.raises(Unavailable):
        book.get(Refused)
    assert calls == ["root", "twice", "refused"]


def test_release_keeps_what_an_optional_need_will_read() -> None:
    book = ledger()
    book.get(Twice)
    book.release([Hopeful])
    book.get(Hopeful)
    assert calls.count("twice") == 1


def test_release_closes_values() -> None:
    book = ledger()
    pool = book.get(Pool)
    book.release()
    assert pool.closed


def test_refusals_hold_no_frames() -> None:
    book = ledger()
    with pytest.raises(Unavailable):
        book.get(Refused)
    kept = [value for value in gc.get_objects() if type(value) is Refusal]
    assert all(value.error.__traceback__ is None for value in kept if isinstance(value.error, Unavailable))


def test_needs_and_costs_follow_from_signatures() -> None:
    assert closure(Hopeful) == {Hopeful}
    assert closure(Hopeful, optional=True) == {Hopeful, Refused, Twice, Root}
    assert cost_of([Twice]) == "backward"
    assert cost_of([Hopeful]) == "static"


def test_a_circle_is_named() -> None:
    with pytest.raises(UsageError, match=r"test_evidence\.py:\d+: .*`circle` → `around` → `circle`"):
        closure(Circle, optional=True)


def test_an_unknown_cost_is_named() -> None:
    with pytest.raises(UsageError, match=r"test_evidence\.py:\d+: the cost of `priceless` is `priceless`"):
        collector(Priceless)


def test_ids_are_kebab_case() -> None:
    @dataclass(frozen=True)
    class LayerSpectra2D: ...

    assert evidence_id(LayerSpectra2D) == "layer-spectra2-d"
    assert evidence_id(Twice) == "twice"
    assert is_evidence(Target)
    assert not is_evidence(LayerSpectra2D)


def test_deadline() -> None:
    assert Deadline().seconds_left == float("inf")
    assert 0 < Deadline(60).seconds_left <= 60
    assert Deadline(0).seconds_left == 0
