"""A tensor as it lies in a file: its description, and how its values are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from debugkit.errors import UsageError
from debugkit.weights.matrix import Array

FLOATS = ("float64", "float32", "float16", "bfloat16")
STORED = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""What numpy lacks is read as its bits."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not read yet.

    Attributes:
        name: as the checkpoint has it.
        shape: of the tensor.
        dtype: of the stored values, such as ``bfloat16``, or the name of a quantised format.
        nbytes: what it takes in the file.
        load: reads the values, ``[*shape]``; bfloat16 as its bits in ``uint16``. What is mapped from a file is
            unmapped when the array is dropped.
        place: file and offset, by which tied tensors are known; ``None`` where there is none.
        quantised: the format that ``load`` dequantises; empty for values that are stored as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    load: Callable[[], Array] = field(repr=False, compare=False)
    place: tuple[str, int] | None = field(default=None, repr=False)
    quantised: str = ""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the values are floating-point numbers of at least 16 bits."""
        return self.dtype in FLOATS


def mapped(name: str, shape: tuple[int, ...], dtype: str, path: Path, offset: int) -> StoredTensor:
    """A contiguous tensor that is mapped from a file when it is read."""
    stored = np.dtype(STORED.get(dtype, dtype))

    def load() -> Array:
        if not math.prod(shape):
            return np.empty(shape, stored)
        return np.memmap(path, stored, "r", offset, shape)

    return StoredTensor(name, shape, dtype, math.prod(shape) * stored.itemsize, load, (str(path), offset))


def unreadable(name: str) -> Callable[[], Array]:
    """``load`` of a tensor in a format that numpy lacks."""

    def load() -> Array:
        raise UsageError(f"`{name}` is stored in a format that can't be read here")

    return load


def in_depth(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """In the order of their names, with numbers as numbers: block 2 comes before block 10."""

    def key(tensor: StoredTensor) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tensor.name)]

    return sorted(tensors, key=key)
