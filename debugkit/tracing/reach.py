"""Which values the operations behind a tensor can give, read from the autograd graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from debugkit.tracing.graph import MOVES, Node

_INF = math.inf
_DEEPEST = 64


@dataclass(frozen=True)
class Reach:
    """A closed interval that holds every value a tensor can take.

    Attributes:
        low: the lower end; minus infinity where there is none.
        high: the upper end; infinity where there is none.
        op: the operation that bounds it, such as ``sigmoid``; ``""`` where nothing does.
    """

    low: float = -_INF
    high: float = _INF
    op: str = ""

    @property
    def bounded(self) -> bool:
        """Whether some real number is out of reach."""
        return self.low > -_INF or self.high < _INF


_ANYWHERE = Reach()

_FIXED: dict[str, Reach] = {
    "Sigmoid": Reach(0, 1, "sigmoid"),
    "Hardsigmoid": Reach(0, 1, "hardsigmoid"),
    "Softmax": Reach(0, 1, "softmax"),
    "Tanh": Reach(-1, 1, "tanh"),
    "Sin": Reach(-1, 1, "sin"),
    "Cos": Reach(-1, 1, "cos"),
    "Erf": Reach(-1, 1, "erf"),
    "Relu": Reach(0, _INF, "relu"),
    "Softplus": Reach(0, _INF, "softplus"),
    "Exp": Reach(0, _INF, "exp"),
    "Abs": Reach(0, _INF, "abs"),
    "Sqrt": Reach(0, _INF, "sqrt"),
    "LogSoftmax": Reach(-_INF, 0, "log_softmax"),
    "LogSigmoid": Reach(-_INF, 0, "logsigmoid"),
    "Gelu": Reach(-0.17, _INF, "gelu"),
    "Silu": Reach(-0.2785, _INF, "silu"),
    "MkldnnRnnLayer": Reach(-1, 1, "lstm"),
}

_MOVING = MOVES | {
    "Mean",
    "Median",
    "Max",
    "Min",
    "Amax",
    "Amin",
    "MaxPool2DWithIndices",
    "AdaptiveAvgPool2D",
    "AvgPool2D",
    "AdaptiveMaxPool2D",
    "UpsampleNearest2D",
    "UpsampleBilinear2D",
}
_JOINING = frozenset({"Cat", "Stack", "Maximum", "Minimum", "Where"})


def reach_of(node: Node) -> Reach:
    """The values that the tensor of an autograd node can take; unbounded where the graph does not say.

    It can be asked after the backward pass, when the values that the graph had saved are gone.
    """
    return _reach(node, {}, _DEEPEST)


def _reach(node: Node, seen: dict[Node, Reach], depth: int) -> Reach:
    if node is None or not depth:
        return _ANYWHERE
    if node not in seen:
        seen[node] = _ANYWHERE
        seen[node] = _by_operation(node, seen, depth - 1)
    return seen[node]


def _by_operation(node: Node, seen: dict[Node, Reach], depth: int) -> Reach:
    raw = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
    if raw in _FIXED:
        return _FIXED[raw]
    inputs = [after for after, _ in node.next_functions if after is not None]
    if raw in _MOVING and len(inputs) == 1:
        return _reach(inputs[0], seen, depth)
    if raw in _JOINING and len(inputs) == len(node.next_functions):
        return _union(_reach(after, seen, depth) for after in inputs)
    if raw == "Neg" and inputs:
        inner = _reach(inputs[0], seen, depth)
        return Reach(-inner.high, -inner.low, inner.op)
    if raw == "Mul" and len(inputs) == 2:
        return _product(*(_reach(after, seen, depth) for after in inputs))
    special = _SPECIAL.get(raw)
    return special(node, [_reach(after, seen, depth) for after in inputs[:1]]) if special else _ANYWHERE


def _clamp(node: Node, behind: list[Reach]) -> Reach:
    outer = Reach(
        _number(getattr(node, "_saved_min", None), -_INF),
        _number(getattr(node, "_saved_max", None), _INF),
        "clamp",
    )
    return _within(outer, behind[0]) if behind and outer.bounded else _ANYWHERE


def _hardtanh(node: Node, behind: list[Reach]) -> Reach:
    low, high = _number(node._saved_min_val, -_INF), _number(node._saved_max_val, _INF)
    return Reach(low, high, "relu6" if (low, high) == (0, 6) else "hardtanh")


def _power(node: Node, behind: list[Reach]) -> Reach:
    exponent = _number(getattr(node, "_saved_exponent", None), 1)
    return Reach(0, _INF, "pow") if exponent % 2 == 0 else _ANYWHERE


def _elu(node: Node, behind: list[Reach]) -> Reach:
    alpha, scale = _number(node._saved_alpha, _INF), _number(node._saved_scale, 1)
    return Reach(-abs(alpha * scale), _INF, "elu")


_SPECIAL: dict[str, Callable[[Any, list[Reach]], Reach]] = {
    "Clamp": _clamp,
    "ClampMin": _clamp,
    "ClampMax": _clamp,
    "Hardtanh": _hardtanh,
    "Pow": _power,
    "Elu": _elu,
}


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) else default


def _union(parts: Iterable[Reach]) -> Reach:
    found = list(parts)
    if not found:
        return _ANYWHERE
    low, high = min(one.low for one in found), max(one.high for one in found)
    return Reach(low, high, " and ".join(dict.fromkeys(one.op for one in found if one.op)))


def _within(outer: Reach, inner: Reach) -> Reach:
    if inner.low >= outer.low and inner.high <= outer.high:
        return inner
    return Reach(max(outer.low, inner.low), min(outer.high, inner.high), outer.op)


def _product(one: Reach, other: Reach) -> Reach:
    """Of two bounded factors, as a gate and a state make it in a recurrent layer."""
    ends = (one.low, one.high, other.low, other.high)
    if any(math.isinf(end) for end in ends):
        return _ANYWHERE
    found = [a * b for a in ends[:2] for b in ends[2:]]
    return Reach(min(found), max(found), f"{one.op} * {other.op}")
