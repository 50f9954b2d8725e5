"""How far training has moved the parts of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from debugkit.probes.loop_record import LayerLog


def by_block(layers: Iterable[LayerLog]) -> list[tuple[str, float]]:
    """``(block, relative distance to the start)`` in the order of the parameters.

    Blocks are the outermost modules that tell the parameters apart, such as ``encoder`` and ``classifier``; the
    distance of a block is the norm of what it moved over its norm at the start. Blocks that began at zero are left
    out.
    """
    known = [layer for layer in layers if layer.distance is not None and layer.start is not None]
    names = [layer.name.split(".") for layer in known if layer.in_model]
    depth = _shared(names)
    blocks: dict[str, list[LayerLog]] = {}
    for layer in known:
        parts = layer.name.split(".")
        blocks.setdefault(".".join(parts[: depth + 1][: max(1, len(parts) - 1)]), []).append(layer)
    return [(name, share) for name, block in blocks.items() if (share := _moved(block)) is not None]


def _shared(names: Sequence[Sequence[str]]) -> int:
    """How many leading parts all names share."""
    depth = 0
    while (
        names and all(len(name) > depth + 1 for name in names) and len({name[depth] for name in names}) == 1
    ):
        depth += 1
    return depth


def _moved(block: Sequence[LayerLog]) -> float | None:
    start = math.sqrt(sum((layer.start or 0.0) ** 2 for layer in block))
    moved = math.sqrt(sum((layer.distance or 0.0) ** 2 for layer in block))
    return moved / start if start > 0 and math.isfinite(moved) else None
