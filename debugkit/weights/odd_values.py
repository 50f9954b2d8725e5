"""Values that are no ordinary numbers: NaN, infinity, and numbers too small to be normal; counted in their bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from debugkit.weights.eigenvalues import widened
from debugkit.weights.matrix import Array

_MANTISSA = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
_SEEN_LEVELS = 3


@dataclass(frozen=True)
class OddValues:
    """A parameter or buffer that holds NaN, infinity or denormal numbers.

    Attributes:
        name: dotted name.
        is_parameter: whether it is a parameter; a buffer else.
        trainable: whether it requires a gradient.
        shape: its shape.
        values: how many values it has.
        nan: how many are NaN.
        plus: how many are infinity.
        minus: how many are minus infinity.
        first: index of the first value that is not finite; ``None`` where all are.
        levels: how many distinct finite values there are (3 stands for more than 2).
        denormal: how many are denormal; not counted in float16, whose range is that small.
    """

    name: str
    is_parameter: bool
    trainable: bool
    shape: tuple[int, ...]
    values: int
    nan: int
    plus: int
    minus: int
    first: tuple[int, ...] | None
    levels: int
    denormal: int

    @property
    def unbounded(self) -> int:
        """How many values are not finite."""
        return self.nan + self.plus + self.minus


def odd_values(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    parts: Iterable[Array | int],
    *,
    is_parameter: bool = True,
    trainable: bool = False,
) -> OddValues | None:
    """Count what is odd in a tensor; ``None`` where nothing is.

    Args:
        name: dotted name.
        shape: of the whole tensor.
        dtype: of its values: ``float64``, ``float32``, ``float16`` or ``bfloat16``.
        parts: its values in order, flat, bfloat16 as its bits; the length of a part that is known to be ordinary.
        is_parameter: whether it is a parameter; a buffer else.
        trainable: whether it requires a gradient.
    """
    nan = plus = minus = denormal = seen = 0
    first: int | None = None
    levels: set[float] = set()
    for part in parts:
        if isinstance(part, int):
            seen += part
            continue
        bits, infinity, normal = _magnitudes(part, dtype)
        if dtype != "float16":
            denormal += int(np.count_nonzero((bits - bits.dtype.type(1)) < normal - bits.dtype.type(1)))
        if int(bits.max(initial=0)) >= infinity:
            odd = bits >= infinity
            if first is None:
                first = seen + int(odd.argmax())
            values = widened(part)
            nan += int(np.count_nonzero(bits > infinity))
            plus += int(np.count_nonzero(values == np.inf))
            minus += int(np.count_nonzero(values == -np.inf))
            levels |= _levels(values[~odd], levels)
        elif first is not None:
            levels |= _levels(widened(part), levels)
        seen += len(part)
    if first is None and not denormal:
        return None
    place = None if first is None else tuple(int(at) for at in np.unravel_index(first, shape))
    return OddValues(
        name,
        is_parameter,
        trainable,
        shape,
        seen,
        nan,
        plus,
        minus,
        place,
        min(_SEEN_LEVELS, len(levels)),
        denormal,
    )


def _magnitudes(part: Array, dtype: str) -> tuple[Array, Any, Any]:
    """The bits without the sign, those of infinity, and those of the smallest normal number."""
    kind = {8: np.uint64, 4: np.uint32, 2: np.uint16}[part.dtype.itemsize]
    mantissa = _MANTISSA[dtype]
    width = 8 * part.dtype.itemsize - 1
    normal, sign = kind(1 << mantissa), kind((1 << width) - 1)
    infinity = kind((1 << width) - (1 << mantissa))
    return np.ascontiguousarray(part).view(kind) & sign, infinity, normal


def _levels(values: Array, seen: set[float]) -> set[float]:
    """Up to three distinct values, unless that many were seen."""
    return set() if len(seen) >= _SEEN_LEVELS else set(np.unique(values)[:_SEEN_LEVELS].tolist())
