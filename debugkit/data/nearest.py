"""Rows of numbers that are another row with a little noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from debugkit.data.rows import Rows

Array = np.ndarray[Any, Any]

_MOST_VALUES = 256
_MOST_ROWS = 4096
_CLOSE = 0.02
_GAP = 5
_BETWEEN = 0.5
_SPARSE = 20
_FEWEST = 32
_TYPICAL = 0.05
_CHUNK = 512


def matrices(splits: Sequence[Rows], paths: Sequence[str]) -> list[Array] | None:
    """Per split the values ``[samples, values]`` float32, each of them scaled by its spread in the first split.

    The pixels of a picture share one scale: at its border they hardly vary, and a little noise would weigh most
    there. ``None`` where some key is not one of floating point numbers of one shape. Of long rows every k-th value
    is kept.
    """
    parts: list[list[Array]] = []
    pictures: list[bool] = []
    for rows in splits:
        columns = [rows.columns.get(path) for path in paths]
        stacks = [
            column.stacked() if column is not None and column.is_floating else None for column in columns
        ]
        found = [stack.flatten(1).float().numpy() for stack in stacks if stack is not None and stack.ndim > 1]
        if not found or len(found) < len(paths):
            return None
        pictures = [stack.ndim > 3 for stack in stacks if stack is not None and stack.ndim > 1]
        parts.append([np.asarray(part[:_MOST_ROWS, :: -(-part.shape[1] // _MOST_VALUES)]) for part in found])
    if any([part.shape[1] for part in split] != [part.shape[1] for part in parts[0]] for split in parts):
        return None
    joined = [np.concatenate(split, 1).astype(np.float32) for split in parts]
    if not all(np.isfinite(split).all() for split in joined):
        return None
    spreads = [part.astype(np.float32).std(0) for part in parts[0]]
    spread = np.concatenate(
        [
            np.where(each > 0, np.sqrt((each**2).mean()), 0) if picture else each
            for each, picture in zip(spreads, pictures, strict=True)
        ]
    )
    return [split[:, spread > 0] / spread[spread > 0] for split in joined]


def noisy_copies(rows: Array, others: Array) -> list[tuple[int, int]]:
    """Rows that lie much closer to one of the others than any rows in between would.

    Copies with noise leave a gap: many rows within 2 % of the distance of neighbours, and few a little further
    away. Where data is merely dense, there are always more within five times a distance, and a tenth neighbour is
    not much further away.

    Args:
        rows: ``[n, values]``.
        others: ``[m, values]``.

    Returns:
        Pairs of a row and its nearest other, without equal ones; none where no gap shows.
    """
    if min(len(rows), len(others)) < _FEWEST or rows.shape[1] < 2:
        return []
    nearest, squares = _nearest(rows, others)
    close = _CLOSE * _neighbourhood(rows, others)
    if _tenth_neighbour(others) < _SPARSE * close:
        return []
    distances = np.sqrt(squares)
    distances[distances < 2 * _GAP * close] = np.linalg.norm(
        (rows - others[nearest])[distances < 2 * _GAP * close].astype(np.float64), axis=1
    )
    copies = (distances > 0) & (distances < close)
    between = (distances >= close) & (distances < _GAP * close)
    if between.sum() > _BETWEEN * copies.sum():
        return []
    return [(int(row), int(nearest[row])) for row in np.flatnonzero(copies)]


def _nearest(rows: Array, others: Array) -> tuple[Array, Array]:
    """``[n]`` number of the nearest other row, ``[n]`` squared distance to it."""
    lengths = (others * others).sum(1)
    nearest, squares = [], []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        distances = lengths[None, :] - 2 * chunk @ others.T
        place = distances.argmin(1)
        nearest.append(place)
        squares.append(distances[np.arange(len(chunk)), place] + (chunk * chunk).sum(1))
    return np.concatenate(nearest), np.maximum(np.concatenate(squares), 0).astype(np.float64)


def _neighbourhood(rows: Array, others: Array) -> float:
    """The distance within which 5 % of the others lie."""
    some, rest = rows[:: max(1, len(rows) // 64)], others[:: max(1, len(others) // 512)]
    distances = np.linalg.norm(some[:, None].astype(np.float64) - rest[None], axis=2)
    return float(np.quantile(distances[distances > 0], _TYPICAL)) if (distances > 0).any() else 0.0


def _tenth_neighbour(rows: Array) -> float:
    """The median distance from a row to the tenth nearest of the others."""
    some = rows[:: max(1, len(rows) // 128)]
    squares = (some * some).sum(1)[:, None] + (rows * rows).sum(1)[None] - 2 * some @ rows.T
    return float(np.sqrt(max(np.median(np.partition(squares, 10, axis=1)[:, 10]), 0)))
