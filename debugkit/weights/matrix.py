"""A parameter that stands for one or several matrices, described before its values are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kind = Literal["linear", "conv", "attention", "recurrent", "experts", "embedding", "other"]

_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 2.0**-52}


@dataclass(frozen=True)
class Matrix:
    """One parameter: what it is, how it is cut into matrices, and how its values are read.

    Attributes:
        name: dotted name of the parameter.
        kind: what it does in its layer.
        shape: of the parameter; a convolution has its outputs first, its inputs second, then its taps.
        dtype: in which its values are stored: ``float32``, ``float64``, ``float16`` or ``bfloat16``.
        load: reads the values; bfloat16 comes as its bits in ``uint16``.
        parts: label and length of each part of a fused parameter, along ``axis``; empty for a whole one.
        axis: along which the parts, such as query, key and value, lie side by side.
        outputs: the dimension of a matrix that counts outputs: 0, or 1 for the transposed layout of GPT-2.
        groups: of a convolution.
        trainable: whether the parameter will be trained.
        unjudged: why its spectrum is reported without a verdict, such as ``embedding table``.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array] = field(repr=False, compare=False)
    parts: tuple[tuple[str, int], ...] = ()
    axis: int = 0
    outputs: int = 0
    groups: int = 1
    trainable: bool = True
    unjudged: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values."""
        return math.prod(self.shape) * {"float64": 8, "float32": 4}.get(self.dtype, 2)

    @property
    def epsilon(self) -> float:
        """Spacing of the stored values around 1."""
        return _EPSILONS.get(self.dtype, 2.0**-23)

    @property
    def sides(self) -> list[tuple[str, int, int, int]]:
        """Label, number of matrices, rows and columns of each part."""
        if self.kind == "conv":
            rows, columns, *taps = self.shape
            return [("", math.prod(taps) * self.groups, rows // self.groups, columns)]
        found = []
        for label, length in self.parts or (("", self.shape[self.axis]),):
            shape = [*self.shape[: self.axis], length, *self.shape[self.axis + 1 :]]
            found.append((label, math.prod(shape[:-2]), shape[-2], shape[-1]))
        return found

    @property
    def cost(self) -> float:
        """Floating-point operations of the Gram products and of the eigenvalues."""
        total = 0.0
        for _, slices, rows, columns in self.sides:
            short, long = sorted((rows, columns))
            total += slices * short**2 * (long + 4 * short)
        return total

    @property
    def memory(self) -> int:
        """Bytes that an analysis holds at most: the values, the Gram matrix, LAPACK's copy and the next block's product."""
        each = max(24 * min(rows, columns) ** 2 for _, _, rows, columns in self.sides)
        return self.nbytes + each + 2**25

    def cut(self, values: Array) -> list[tuple[str, Array]]:
        """Label and ``[matrices, rows, columns]`` of each part of the values."""
        if self.kind == "conv":
            rows, columns = values.shape[:2]
            grouped = values.reshape(self.groups, rows // self.groups, columns, -1).transpose(0, 3, 1, 2)
            return [("", grouped.reshape(-1, rows // self.groups, columns))]
        ends = np.cumsum([length for _, length in self.parts])[:-1]
        pieces = np.split(values, ends, self.axis) if self.parts else [values]
        labels = [label for label, _ in self.parts] or [""]
        return [
            (label, piece.reshape(-1, *piece.shape[-2:])) for label, piece in zip(labels, pieces, strict=True)
        ]


@dataclass(frozen=True)
class SkippedMatrix:
    """A parameter with two or more dimensions that has no spectrum, and why."""

    parameter: str
    shape: tuple[int, ...]
    reason: str


def equal_parts(labels: Sequence[str], length: int) -> tuple[tuple[str, int], ...]:
    """``parts`` for a dimension that holds equally long parts side by side."""
    return tuple((label, length // len(labels)) for label in labels)
