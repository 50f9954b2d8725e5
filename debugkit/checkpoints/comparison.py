"""Two checkpoints side by side: which tensors are the same ones, and how far each has moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from debugkit.checkpoints.checkpoint import Checkpoint
from debugkit.checkpoints.tensor import StoredTensor
from debugkit.weights.matrix import Array
from debugkit.weights.pages import blocks

_BLOCK = 2**20


@dataclass(frozen=True)
class Move:
    """One tensor before and after.

    Attributes:
        name: in the first checkpoint.
        other: in the second.
        shape: of both.
        distance: norm of the change over the norm before; infinite where all was zero before, NaN where a value is not finite.
        cosine: between before and after; NaN where one is zero.
        unchanged: share of the values that are the same.
    """

    name: str
    other: str
    shape: tuple[int, ...]
    distance: float
    cosine: float
    unchanged: float


@dataclass(frozen=True)
class Comparison:
    """What moved between two checkpoints.

    Attributes:
        moves: by tensor, in the order of the first.
        reshaped: names with other shapes on the two sides.
        only_first: names that only the first has.
        only_second: names that only the second has.
    """

    moves: tuple[Move, ...] = field(repr=False)
    reshaped: tuple[str, ...] = ()
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()

    @property
    def moved(self) -> list[Move]:
        """The tensors that changed, the farthest first."""
        moved = (one for one in self.moves if one.distance != 0)
        return sorted(moved, key=lambda one: -one.distance if one.distance >= 0 else -math.inf)


def compare(first: Checkpoint, second: Checkpoint) -> Comparison:
    """Line up the floating-point tensors of two checkpoints, and measure how far each moved."""
    before = {tensor.name: tensor for tensor in first.tensors if tensor.is_float}
    after = {tensor.name: tensor for tensor in second.tensors if tensor.is_float}
    pairs = lined_up(before, after)
    same = {name: other for name, other in pairs.items() if before[name].shape == after[other].shape}
    met = set(pairs.values())
    return Comparison(
        tuple(_move(before[name], after[other]) for name, other in same.items()),
        tuple(name for name in pairs if name not in same),
        tuple(name for name in before if name not in pairs),
        tuple(name for name in after if name not in met),
    )


def lined_up(first: Mapping[str, object], second: Mapping[str, object]) -> dict[str, str]:
    """The name on the other side: the same, or the same behind the prefix that fits most names."""
    best = {name: name for name in first if name in second}
    for longer, shorter, turned in ((first, second, False), (second, first, True)):
        for prefix in _prefixes(longer):
            pairs = {prefix + name: name for name in shorter if prefix + name in longer}
            if len(pairs) > len(best):
                best = {short: long for long, short in pairs.items()} if turned else pairs
    return best


def _prefixes(names: Iterable[str]) -> set[str]:
    """What stands before the first, second and third dot of any name."""
    found = set()
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:depth]) + "." for depth in range(1, min(4, len(parts)))}
    return found


def _move(before: StoredTensor, after: StoredTensor) -> Move:
    change = old = new = dot = same = 0.0
    for a, b in zip(_pieces(before), _pieces(after), strict=True):
        same += float((a == b).sum())
        change += float(np.square(b - a).sum())
        old += float(np.square(a).sum())
        new += float(np.square(b).sum())
        dot += float((a * b).sum())
    unchanged = same / max(1, before.size)
    if unchanged == 1.0:
        change = 0.0
    distance = math.sqrt(change / old) if old else (math.inf if change else 0.0)
    cosine = dot / math.sqrt(old * new) if old and new else math.nan
    return Move(before.name, after.name, before.shape, distance, cosine, unchanged)


def _pieces(tensor: StoredTensor) -> Iterable[Array]:
    """The values in float64, a part at a time."""
    plain = tensor.dtype != "bfloat16"
    for part in blocks(tensor.load().reshape(-1), _BLOCK):
        yield (
            np.asarray(part, np.float64)
            if plain
            else (part.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        )
