"""Groups that the inputs fall into, whatever the labels say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_RESTARTS = 6
_ROUNDS = 30
_DIRECTIONS = 5
_COLUMNS = 32
_MOST_GROUPS = 12
_CLEAR = ((200, 4.0), (100, 4.6), (48, 5.5))
"""From how many samples on groups so far apart are clear: halves of a uniform distribution are 3.5 apart, of a
normal one 2.7, and up to 1 more by chance where samples are few."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Clear groups of samples.

    Attributes:
        members: ``[n]`` the group of each sample.
        apart: the least distance between the means of two groups, in standard deviations within them along the
            line between them.
        strayed: by how many samples sizes may be off, since some lie on the other side of the middle.
    """

    members: Array = field(repr=False)
    apart: float
    strayed: float


def clear_groups(values: Array, sizes: Array) -> Groups | None:
    """Groups as many and as large as the classes, far apart from each other; ``None`` where there are none.

    Args:
        values: ``[n, d]`` continuous values.
        sizes: how many samples each class has.
    """
    count = len(sizes)
    if count > _MOST_GROUPS:
        return None
    least = next((apart for fewest, apart in _CLEAR if len(values) >= fewest), None)
    for points in _views(values, count) if least else ():
        members = _k_means(points, count)
        apart = _distance(points, members, count)
        if apart < (least or 0):
            continue
        strayed = 1.5 * NormalDist().cdf(-apart / 2) * len(values)
        found = np.bincount(members, minlength=count)
        if np.abs(np.sort(found) - np.sort(sizes)).max() <= strayed + (strayed > 0.2):
            return Groups(members, apart, strayed)
    return None


def _views(values: Array, count: int) -> Iterator[Array]:
    """The directions in which the values vary most, together and each one alone, and the columns with least tails."""
    std = values.std(0)
    scaled = (values - values.mean(0))[:, std > 0] / std[std > 0]
    if not scaled.size:
        return
    _, vectors = np.linalg.eigh(scaled.T @ scaled)
    directions = scaled @ vectors[:, ::-1][:, : max(_DIRECTIONS, count - 1)]
    if directions.shape[1] >= count - 1 > 1:
        yield directions[:, : count - 1]
    for column in directions[:, :_DIRECTIONS].T:
        yield column[:, None]
    flattest = np.argsort((scaled**4).mean(0), kind="stable")[:_COLUMNS]
    for column in scaled.T[flattest]:
        if len(np.unique(column)) > 2 * count:
            yield column[:, None]


def _k_means(points: Array, count: int) -> Array:
    best: tuple[float, Array] | None = None
    random = np.random.default_rng(0)
    for restart in range(_RESTARTS if points.shape[1] > 1 else 1):
        if points.shape[1] == 1:
            centres = np.quantile(points, (np.arange(count) + 0.5) / count, axis=0)
        else:
            centres = _spread(points, count, random if restart else np.random.default_rng(1))
        for _ in range(_ROUNDS):
            squares = ((points[:, None] - centres[None]) ** 2).sum(-1)
            groups = squares.argmin(1)
            moved = np.stack(
                [points[groups == g].mean(0) if (groups == g).any() else centres[g] for g in range(count)]
            )
            if np.allclose(moved, centres):
                break
            centres = moved
        error = float(squares.min(1).sum())
        if best is None or error < best[0]:
            best = (error, groups)
    assert best is not None
    return best[1]


def _spread(points: Array, count: int, random: np.random.Generator) -> Array:
    """Starting centres far from each other (k-means++)."""
    chosen = [int(random.integers(len(points)))]
    while len(chosen) < count:
        squares = ((points[:, None] - points[chosen][None]) ** 2).sum(-1).min(1)
        total = squares.sum()
        odds = squares / total if total > 0 else None
        chosen.append(int(random.choice(len(points), p=odds)))
    return points[chosen]


def _distance(points: Array, groups: Array, count: int) -> float:
    """The least distance between the means of two groups in standard deviations along their line."""
    least = np.inf
    parts = [points[groups == group] for group in range(count)]
    if min(map(len, parts)) < 2:
        return 0.0
    for one in range(count):
        for other in range(one):
            line = parts[one].mean(0) - parts[other].mean(0)
            length = float(np.linalg.norm(line))
            if not length:
                return 0.0
            spread = [float((part @ line / length).var()) for part in (parts[one], parts[other])]
            least = min(least, length / max((sum(spread) / 2) ** 0.5, 1e-12 * length))
    return float(least)
