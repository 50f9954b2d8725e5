"""Values that are mapped from a file: read in blocks, and their pages handed back to the system."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from debugkit.weights.matrix import Array

_HELD = 2**25


def blocks(values: Array, width: int, axis: int = 0) -> Iterator[Array]:
    """Consecutive blocks of ``width`` along an axis; of a mapped file, few megabytes stay in memory."""
    held = 0
    for start in range(0, values.shape[axis], width):
        block = values[start : start + width] if axis == 0 else values[:, start : start + width]
        yield block
        held += block.nbytes
        if held > _HELD:
            release(values)
            held = 0
    release(values)


def release(values: Array) -> None:
    """Drop the pages of a read-only mapping; they are read again when they are needed again."""
    mapping = _mapping_of(values)
    if mapping is not None and not values.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping_of(values: object) -> mmap.mmap | None:
    while values is not None and not isinstance(values, mmap.mmap):
        values = values.obj if isinstance(values, memoryview) else getattr(values, "base", None)
    return values
