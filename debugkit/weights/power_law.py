"""The power-law fit of a spectrum's tail.

It gives the numbers of WeightWatcher (https://arxiv.org/abs/2102.06559) by the method of Clauset, Shalizi and Newman
(https://arxiv.org/abs/0706.1062): for each start of the tail, alpha by maximum likelihood from suffix sums of
logarithms; the start with the smallest Kolmogorov-Smirnov distance wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from debugkit.weights.matrix import Array

SHORTEST_TAIL = 2
_SMALL_SAMPLE = 20
_SMALL_TAIL = 8
_BLOCK = 2**18
_COARSE = 24
_FIRST_LOOK = 12
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PowerLaw:
    """A power law p(x) ~ x^-alpha, fitted to the tail of a sample by maximum likelihood.

    Attributes:
        alpha: the exponent.
        sigma: its standard error.
        xmin: where the tail begins.
        distance: Kolmogorov-Smirnov distance D between the tail and the law.
        tail: number of values in the tail.
    """

    alpha: float
    sigma: float
    xmin: float
    distance: float
    tail: int


def fit_power_law(values: Array) -> PowerLaw | None:
    """Fit a power law to the upper tail; the tail begins where the distance D is smallest.

    Args:
        values: positive, ascending, ``[n]``.

    Returns:
        The fit, or ``None`` where no tail can be fitted (too few values, or all the same).
    """
    n = len(values)
    if n < SHORTEST_TAIL:
        return None
    logs = np.log(values, dtype=np.float64)
    sizes = np.arange(n, 0, -1, dtype=np.float64)
    spread = logs[::-1].cumsum()[::-1] - sizes * logs
    small = n < _SMALL_SAMPLE
    allowed = np.flatnonzero((spread > 1e-12 * sizes) & (sizes >= (_SMALL_TAIL if small else SHORTEST_TAIL)))
    if not len(allowed):
        return None
    alphas = np.ones(n)
    alphas[allowed] += (sizes - 1 if small else sizes)[allowed] / spread[allowed]
    best, distance = _closest(logs, alphas, allowed)
    tail, alpha = n - best, float(alphas[best])
    return PowerLaw(alpha, (alpha - 1) / math.sqrt(tail), float(values[best]), distance, tail)


def alpha_range(values: Array, dropped: int = 5) -> tuple[float, float] | None:
    """Smallest and largest alpha over fits that leave out the 0..``dropped`` largest values."""
    fits = [fit_power_law(values[: max(0, len(values) - count)]) for count in range(dropped + 1)]
    alphas = [fit.alpha for fit in fits if fit is not None]
    return (min(alphas), max(alphas)) if alphas else None


def _closest(logs: Array, alphas: Array, starts: Array) -> tuple[int, float]:
    """The first start with the smallest D, and that D.

    D at a few places of a tail is at most D of the whole tail, so most starts need no more than these.
    """
    at_least = _distances_at_few(logs, alphas, starts)
    look = np.sort(starts[np.argsort(at_least, kind="stable")[:_FIRST_LOOK]])
    bound = float(_distances(logs, alphas, look).min()) + _ROUNDING
    look = starts[at_least <= bound]
    distances = _distances(logs, alphas, look)
    best = int(distances.argmin())
    return int(look[best]), float(distances[best])


def _distances_at_few(logs: Array, alphas: Array, starts: Array) -> Array:
    sizes = len(logs) - starts
    ahead = (np.linspace(0, 1, _COARSE)[:, None] * (sizes - 1)).astype(np.intp)
    beyond = logs[starts + ahead]
    beyond -= logs[starts]
    beyond *= 1 - alphas[starts]
    np.exp(beyond, out=beyond)
    beyond += ahead / sizes
    beyond -= 1
    distances: Array = np.abs(beyond, out=beyond).max(0)
    return distances


def _distances(logs: Array, alphas: Array, starts: Array) -> Array:
    """D of each start (ascending), in blocks of starts."""
    n = len(logs)
    index = np.arange(n, dtype=np.float64)
    distances = np.empty(len(starts))
    done = 0
    while done < len(starts):
        first = int(starts[done])
        block = starts[done : done + max(1, _BLOCK // (n - first))]
        beyond = logs[first:] - logs[block, None]
        beyond *= 1 - alphas[block, None]
        np.minimum(beyond, 0, out=beyond)
        np.exp(beyond, out=beyond)
        beyond += (index[first:] - block[:, None]) / (n - block[:, None])
        beyond -= 1
        np.abs(beyond, out=beyond)
        beyond[index[first:] < block[:, None]] = 0
        distances[done : done + len(block)] = beyond.max(1)
        done += len(block)
    return distances
