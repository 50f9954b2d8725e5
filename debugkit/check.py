"""A check: one generator function whose signature is its whole declaration."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from debugkit.errors import UsageError
from debugkit.evidence import Cost, Kind, closure, collector, cost_of, evidence_place
from debugkit.finding import Finding
from debugkit.signature import Signature, place_of, read_signature

_MARK = "__debugkit_check__"
HEADINGS = ("Why is this bad?", "What to do", "Known limits", "References")

F = TypeVar("F", bound=Callable[..., Iterator[Finding]])


def check(function: F) -> F:
    """Mark a generator of findings as a check.

    The function's name in kebab-case is the check's id, its folder is its family, its positional
    parameters are the evidence it reads, its keyword-only parameters are its options::

        @check
        def label_balance(samples: Samples, *, max_ratio: float = 10.0) -> Iterator[Finding]:
            \"\"\"One class outnumbers another.\"\"\"
    """
    setattr(function, _MARK, True)
    return function


def is_check(value: object) -> bool:
    """Whether a module's attribute was marked with :func:`check`."""
    return callable(value) and getattr(value, _MARK, False) is True


@dataclass(frozen=True, eq=False)
class Check:
    """A check as the registry knows it."""

    function: Callable[..., Iterator[Finding]]
    family: str
    provider: str

    @cached_property
    def id(self) -> str:
        """The function's name in kebab-case."""
        return self.function.__name__.replace("_", "-")

    @cached_property
    def signature(self) -> Signature:
        """Needs and options."""
        return read_signature(self.function)

    @cached_property
    def place(self) -> str:
        """``file:line`` of the definition."""
        return place_of(self.function)

    @cached_property
    def evidence(self) -> frozenset[Kind]:
        """Every kind of evidence that the check must have, directly or not."""
        return frozenset().union(*(closure(need.kind) for need in self.signature.needs if not need.optional))

    @cached_property
    def reads(self) -> frozenset[Kind]:
        """Every kind of evidence that the check may read, optional ones included."""
        return frozenset().union(*(closure(need.kind, optional=True) for need in self.signature.needs))

    @cached_property
    def cost(self) -> Cost:
        """The cost class, which follows from the evidence."""
        return cost_of(self.evidence)

    @cached_property
    def when(self) -> str:
        """The moment, such as ``live``, of what is handed over only then; otherwise the cost class."""
        moments = (getattr(need.kind, "moment", None) for need in self.signature.needs)
        return next((moment for moment in moments if isinstance(moment, str)), self.cost)

    @cached_property
    def doc(self) -> str:
        """The docstring, dedented."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.doc.partition("\n")[0]

    @property
    def examples(self) -> dict[str, Callable[[], Any]]:
        """The zero-argument functions ``good*`` and ``bad*`` beside the check, by name."""
        module = sys.modules[self.function.__module__]
        return {
            name: value
            for name, value in vars(module).items()
            if re.match(r"(good|bad)(_|$)", name) and inspect.isfunction(value)
        }

    def validate(self) -> None:
        """Read the whole declaration now, so that a mistake shows at load time.

        Raises:
            UsageError: starting with ``file:line``.
        """
        if not inspect.isgeneratorfunction(self.function):
            raise UsageError(f"{self.place}: check `{self.id}` must be a generator: `yield` its findings")
        if not self.summary and sys.flags.optimize < 2:
            raise UsageError(f"{self.place}: check `{self.id}` has no docstring")
        found = [line[3:].strip() for line in self.doc.splitlines() if line.startswith("## ")]
        if found != [heading for heading in HEADINGS if heading in found]:
            raise UsageError(
                f"{self.place}: the docstring's headings must be, in this order: {', '.join(HEADINGS)}"
            )
        for kind in self.reads:
            collector(kind).defaults(evidence_place(kind))
        self.signature.defaults(self.place)
