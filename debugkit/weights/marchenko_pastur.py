"""Where the eigenvalues of a matrix of independent values lie: the noise that training starts from.

The Marchenko-Pastur law gives the bulk, Johnstone (https://doi.org/10.1214/aos/1009210544) how far the largest
eigenvalue strays beyond its edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from debugkit.weights.matrix import Array


@dataclass(frozen=True)
class NoiseDistance:
    """How far a spectrum is from that of independent values of the same variance.

    Attributes:
        ks: Kolmogorov-Smirnov distance from the Marchenko-Pastur law, times the short side M. Noise stays
            under 5.
        edge: how far the largest eigenvalue is beyond the law's edge, in Tracy-Widom scales. Noise stays
            under 4.
    """

    ks: float
    edge: float

    @property
    def is_noise(self) -> bool:
        """Whether the spectrum can't be told from noise (5,122 noise matrices: 4.41 and 3.31 at most)."""
        return self.ks < 5.0 and self.edge < 4.0


def noise_distance(eigenvalues: Array, short: int, long: int) -> NoiseDistance:
    """Compare a spectrum with the Marchenko-Pastur law of ratio q = short / long; nothing is fitted.

    Args:
        eigenvalues: ``[n]``, ascending: of one matrix, or of several of the same shape pooled; all of them.
        short: short side M of one matrix.
        long: long side N.
    """
    scaled = eigenvalues / eigenvalues.mean()
    n = len(scaled)
    law = marchenko_pastur_cdf(scaled, short / long)
    steps = np.arange(n + 1) / n
    ks = max(float(np.abs(law - steps[:-1]).max()), float(np.abs(law - steps[1:]).max()))
    edge = (float(scaled[-1]) - bulk_edge(short, long)) / tracy_widom_scale(short, long)
    return NoiseDistance(ks * short, edge)


def bulk_edge(short: int, long: int) -> float:
    """The upper edge of the law, in units of the mean eigenvalue."""
    return (1 + math.sqrt(short / long)) ** 2


def tracy_widom_scale(short: int, long: int) -> float:
    """The scale on which the largest eigenvalue of noise varies, in units of the mean eigenvalue."""
    root_n, root_m = math.sqrt(long), math.sqrt(short)
    return (root_n + root_m) * math.cbrt(1 / root_n + 1 / root_m) / long


def marchenko_pastur_cdf(x: Array, q: float) -> Array:
    """The distribution function of the Marchenko-Pastur law with unit variance.

    Args:
        x: float64.
        q: short side over long side, in (0, 1].
    """
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    inside = np.clip(x, low, high)
    above, below = high - inside, inside - low
    root = np.sqrt(np.maximum(above * below, 0))
    middle = np.arctan2(above - below, 2 * root)
    last = np.arctan2(low * above - high * below, 2 * (1 - q) * root) if q < 1 else 0.0
    value = (math.pi * q + root - (1 + q) * middle + (1 - q) * last) / (2 * math.pi * q)
    value = np.where(x <= low, 0.0, np.where(x >= high, 1.0, value))
    return np.clip(value, 0.0, 1.0)
