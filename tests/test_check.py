"""A check's declaration: read from its signature, and refused with its place when it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from pydantic import Field
from pydantic.fields import FieldInfo

from debugkit import Finding, Target, UsageError, check, note
from debugkit.check import Check
from debugkit.evidence import Deadline
from debugkit.signature import describe_option


@check
def many_options(
    target: Target,
    deadline: Deadline | None,
    *,
    max_ratio: Annotated[float, Field(gt=1, description="majority to minority")] = 10.0,
    copy: bool = False,
    model_size: int | None = None,
) -> Iterator[Finding]:
    """One sentence.

    ## Why is this bad?
    It is.

    ## What to do
    Something.
    """
    yield note("seen")


def made(function: Callable[..., Any]) -> Check:
    return Check(function, "family", "provider")


def test_the_declaration_is_read_from_the_signature() -> None:
    one = made(many_options)
    one.validate()
    assert one.id == "many-options"
    assert one.summary == "One sentence."
    assert [(need.kind, need.optional) for need in one.signature.needs] == [(Target, False), (Deadline, True)]
    assert one.signature.values(one.signature.options()) == {
        "max_ratio": 10.0,
        "copy": False,
        "model_size": None,
    }
    assert one.cost == "static"
    assert one.place.startswith("tests/test_check.py:") or "test_check.py:" in one.place


def test_options_are_described() -> None:
    field = made(many_options).signature.options.model_fields["max_ratio"]
    assert describe_option(field) == ("float > 1", "majority to minority")
    share = FieldInfo.from_annotation(Annotated[float, Field(gt=0, lt=0.1)])
    assert describe_option(share) == ("float > 0, < 0.1", "")


def no_generator(target: Target) -> list[Finding]:
    """Returns."""
    return [note("seen")]


def no_docstring(target: Target) -> Iterator[Finding]:
    yield note("seen")


def unordered(target: Target) -> Iterator[Finding]:
    """Says the end first.

    ## What to do
    ## Why is this bad?
    """
    yield note("seen")


def own_heading(target: Target) -> Iterator[Finding]:
    """Has a heading of its own.

    ## Motivation
    """
    yield note("seen")


def clashing_option(target: Target, *, _ratio: float = 2.0) -> Iterator[Finding]:
    """Hides its option."""
    yield note("seen")


def no_default(target: Target, *, ratio: float) -> Iterator[Finding]:
    """Demands."""
    yield note("seen")


def no_type(target: Target, *, ratio=3) -> Iterator[Finding]:  # type: ignore[no-untyped-def]
    """Is vague."""
    yield note("seen")


def bad_default(target: Target, *, ratio: Annotated[float, Field(gt=1)] = 0.5) -> Iterator[Finding]:
    """Contradicts itself."""
    yield note("seen")


def unknown_evidence(step: int) -> Iterator[Finding]:
    """Asks for a number."""
    yield note("seen")


def positional_option(target: Target, ratio: float = 2.0) -> Iterator[Finding]:
    """Forgets the star."""
    yield note("seen")


def unresolved(target: Nowhere) -> Iterator[Finding]:  # type: ignore[name-defined]  # noqa: F821
    """Forgets the import."""
    yield note("seen")


def variadic(*targets: Target) -> Iterator[Finding]:
    """Takes them all."""
    yield note("seen")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_generator, "must be a generator"),
        (no_docstring, "`no-docstring` has no docstring"),
        (unordered, "headings must be, in this order"),
        (own_heading, "headings must be, in this order"),
        (no_default, "option `ratio` has no default"),
        (clashing_option, "option `_ratio` starts with an underscore"),
        (no_type, "option `ratio` has no type"),
        (bad_default, "default of option `ratio` is not valid"),
        (unknown_evidence, "`step` asks for `int`, which is no evidence"),
        (positional_option, r"`ratio` asks for `float`, which is no evidence; an option stands after `\*`"),
        (unresolved, "annotation can't be resolved.*Nowhere"),
        (variadic, "declare nothing"),
    ],
)
def test_mistakes_are_named_with_their_place(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"test_check\.py:\d+: .*{message}"):
        made(function).validate()
