"""Evidence: measurements that checks share, each taken once.

A kind of evidence is any class with a static method ``collect``. The method's positional parameters
name, by their annotations, the evidence it builds on; its keyword-only parameters are its options. The
class attribute ``cost`` says what the measurement takes at most (see :data:`COSTS`)::

    @dataclass(frozen=True)
    class EvalPasses:
        cost: ClassVar[Cost] = "forward"
        outputs: tuple[torch.Tensor, ...]

        @staticmethod
        def collect(target: Target, batches: Batches, sandbox: Sandbox, *, passes: int = 2) -> EvalPasses: ...

What nothing collects is a root: the moment hands it over (a Target before training, the record of a loop while it
runs). A kind can be built in a moment whose roots it builds on; a need that is ``| None`` is ``None`` in the others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel

from debugkit.errors import Broken, Unavailable, UsageError
from debugkit.signature import Signature, place_of, read_signature

Cost = Literal["static", "data", "forward", "backward", "training"]
COSTS: tuple[Cost, ...] = get_args(Cost)

Kind = type[object]

_ROOT = "__debugkit_root__"

Root = TypeVar("Root", bound=type)


def root(kind: Root) -> Root:
    """Mark a class as what some moment hands over, as a Target is before training; it has a ``name``."""
    setattr(kind, _ROOT, True)
    return kind


@root
class Deadline:
    """The moment when a run's budget ends.

    Args:
        seconds: the budget; ``None`` never ends.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Seconds left, never negative; infinity without a budget."""
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())


def is_root(kind: object) -> bool:
    """Whether a kind is handed over by a moment, and never collected."""
    return isinstance(kind, type) and _ROOT in vars(kind)


def is_evidence(kind: object) -> bool:
    """Whether an annotation names something that a check or a collector can ask for."""
    return is_root(kind) or (isinstance(kind, type) and callable(getattr(kind, "collect", None)))


def buildable(signature: Signature, roots: Iterable[Kind]) -> bool:
    """Whether a moment that hands over these roots has what a signature needs.

    Each need that is not optional must be there; of a signature that has optional needs only, one of them. A
    deadline is there in every moment.
    """
    given = frozenset(roots)
    there = {need: _has(need.kind, given) for need in signature.needs if need.kind is not Deadline}
    required = [has for need, has in there.items() if not need.optional]
    return all(required) and (bool(required) or not there or any(there.values()))


def _has(kind: Kind, given: frozenset[Kind]) -> bool:
    return kind in given if is_root(kind) else buildable(collector(kind), given)


def evidence_id(kind: Kind) -> str:
    """``TrainingStep`` → ``training-step``, the name under which options are set."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()


_SIGNATURES: dict[Kind, Signature] = {}


def collector(kind: Kind) -> Signature:
    """The needs and options of an evidence kind, read from the signature of its ``collect``.

    Raises:
        UsageError: the declaration is wrong; the message starts with ``file:line``.
    """
    if kind not in _SIGNATURES:
        signature = read_signature(kind.collect)  # type: ignore[attr-defined]
        if (cost := getattr(kind, "cost", "static")) not in COSTS:
            raise UsageError(
                f"{evidence_place(kind)}: the cost of `{evidence_id(kind)}` is `{cost}`; it must be one of "
                f"{', '.join(COSTS)}"
            )
        _SIGNATURES[kind] = signature
    return _SIGNATURES[kind]


def evidence_place(kind: Kind) -> str:
    """``file:line`` of a kind's ``collect``."""
    return place_of(kind.collect)  # type: ignore[attr-defined]


def closure(kind: Kind, *, optional: bool = False) -> frozenset[Kind]:
    """The kind itself and every kind it builds on; kinds that it can do without only on request.

    Raises:
        UsageError: kinds need each other in a circle.
    """
    return frozenset(_descend(kind, optional, ()))


def _descend(kind: Kind, optional: bool, above: tuple[Kind, ...]) -> Iterator[Kind]:
    if is_root(kind):
        return
    if kind in above:
        circle = " → ".join(f"`{evidence_id(part)}`" for part in (*above[above.index(kind) :], kind))
        raise UsageError(f"{evidence_place(kind)}: this evidence needs itself: {circle}")
    yield kind
    for need in collector(kind).needs:
        if optional or not need.optional:
            yield from _descend(need.kind, optional, (*above, kind))


def cost_of(kinds: Iterable[Kind]) -> Cost:
    """The most expensive cost class among the kinds and all they build on."""
    costs = (cast("Cost", getattr(part, "cost", "static")) for kind in kinds for part in closure(kind))
    return max(costs, key=COSTS.index, default="static")


@dataclass(frozen=True)
class Refusal:
    """Why a kind of evidence could not be collected: ``Unavailable``, ``Broken``, or a crash."""

    error: Exception

    def again(self) -> Exception:
        """What to raise: a fresh ``Unavailable``, since a traceback would keep released values alive."""
        return Unavailable(*self.error.args) if isinstance(self.error, Unavailable) else self.error


class Ledger:
    """Collects each kind of evidence at most once and remembers refusals.

    Args:
        given: the values of the root kinds.
        options: option values by evidence id.
        max_cost: kinds above this cost are refused.
        on_collect: called with the id of each kind before it is collected.
    """

    def __init__(
        self,
        given: Mapping[Kind, Any],
        options: Mapping[str, BaseModel] | None = None,
        max_cost: Cost = "training",
        on_collect: Callable[[str], object] = lambda name: None,
    ) -> None:
        self._values: dict[Kind, Any] = dict(given)
        self._given = frozenset(given)
        self._options = options or {}
        self._max_cost = max_cost
        self._on_collect = on_collect
        self.seconds: dict[str, float] = {}

    def get(self, kind: Kind) -> Any:
        """The value of a kind, collected now if it is not there yet.

        Raises:
            Unavailable: this target can't give it.
            Broken: the user's program raised while it was measured.
            Exception: the collector crashed.
        """
        if kind not in self._values:
            self._values[kind] = self._collect(kind)
        value = self._values[kind]
        if isinstance(value, Refusal):
            raise value.again()
        return value

    def arguments(self, signature: Signature) -> list[Any]:
        """The values of a signature's needs, in order; an optional need that is refused or broken is ``None``."""
        values = []
        for need in signature.needs:
            try:
                values.append(self.get(need.kind))
            except (Unavailable, Broken):
                if not need.optional:
                    raise
                values.append(None)
        return values

    def release(self, wanted: Iterable[Kind] = ()) -> None:
        """Drop every value that collecting the ``wanted`` kinds won't need; refusals stay remembered."""
        kept = set(self._given)
        open_kinds = list(wanted)
        while open_kinds:
            kind = open_kinds.pop()
            if kind not in kept:
                kept.add(kind)
                if kind not in self._values and not is_root(kind):
                    open_kinds += [need.kind for need in collector(kind).needs]
        for kind in [kind for kind in self._values if kind not in kept]:
            if not isinstance(self._values[kind], Refusal):
                close = getattr(self._values.pop(kind), "close", None)
                if callable(close):
                    close()

    def _collect(self, kind: Kind) -> Any:
        if is_root(kind):
            return Refusal(Unavailable(f"there is no `{evidence_id(kind)}` in this run"))
        if COSTS.index(cost_of([kind])) > COSTS.index(self._max_cost):
            return Refusal(Unavailable(f"`{evidence_id(kind)}` costs more than the limit `{self._max_cost}`"))
        name = evidence_id(kind)
        try:
            signature = collector(kind)
            arguments = self.arguments(signature)
            options = self._options.get(name) or signature.options()
            self._on_collect(name)
            start = time.perf_counter()
            try:
                return kind.collect(*arguments, **signature.values(options))  # type: ignore[attr-defined]
            finally:
                self.seconds[name] = time.perf_counter() - start
        except Unavailable as error:
            return Refusal(Unavailable(*error.args))
        except Exception as error:
            return Refusal(error)
