"""Eigenvalue spectra of weight matrices: the power-law fit of their tail, and the noise law they start from.

The fit gives the numbers of WeightWatcher (https://arxiv.org/abs/2102.06559) by the method of Clauset, Shalizi
and Newman (https://arxiv.org/abs/0706.1062). The Marchenko-Pastur law says where the eigenvalues of a matrix
of independent values lie; Johnstone (https://doi.org/10.1214/aos/1009210544) how far the largest strays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_BLOCK = 2**22
_SMALL = 1024
SHORTEST_TAIL = 2
_SMALL_SAMPLE = 20
_SMALL_TAIL = 8


@dataclass(frozen=True)
class PowerLaw:
    """A power law p(x) ~ x^-alpha, fitted to the tail of a sample by maximum likelihood.

    Attributes:
        alpha: the exponent.
        sigma: its standard error.
        xmin: where the tail begins.
        distance: Kolmogorov-Smirnov distance between the tail and the law.
        tail: number of values in the tail.
    """

    alpha: float
    sigma: float
    xmin: float
    distance: float
    tail: int


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


@torch.no_grad()
def gram_eigenvalues(matrices: torch.Tensor) -> torch.Tensor:
    """The squared singular values of each matrix.

    Args:
        matrices: ``[..., a, b]``, any floating dtype; upcast in blocks.

    Returns:
        ``[..., min(a, b)]`` float64, ascending, never negative.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.transpose(-1, -2)
    *batch, short, long = matrices.shape
    gram = torch.zeros(*batch, short, short, dtype=torch.float64, device=matrices.device)
    width = max(1, _BLOCK // max(1, gram[..., 0].numel()))
    for start in range(0, long, width):
        block = matrices[..., start : start + width].to(torch.float64)
        gram += block @ block.mT
    values: torch.Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp_(min=0.0)


@contextmanager
def few_threads(short: int) -> Iterator[None]:
    """One thread for matrices with a small short side: as fast, and far faster where the cores are busy."""
    before = torch.get_num_threads()
    if short <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rounding_floor(eigenvalues: torch.Tensor, long: int, dtype: torch.dtype) -> float:
    """The size below which an eigenvalue is indistinguishable from the rounding of the stored values.

    Args:
        eigenvalues: all M of them, ascending.
        long: the long side N.
        dtype: in which the matrix was stored.
    """
    short = len(eigenvalues)
    variance = float(eigenvalues.sum()) / (short * long)
    noise = variance * torch.finfo(dtype).eps ** 2 / 12 * (math.sqrt(long) + math.sqrt(short)) ** 2
    return max(4 * noise, 1e-10 * float(eigenvalues[-1]))


def fit_power_law(values: torch.Tensor) -> PowerLaw | None:
    """Fit a power law to the upper tail; the tail begins where the distance D is smallest.

    Args:
        values: positive, ascending, ``[n]``.

    Returns:
        The fit, or ``None`` where no tail can be fitted (too few values, or all the same).
    """
    n = len(values)
    if n < SHORTEST_TAIL:
        return None
    logs = values.to(torch.float64).log()
    sizes = torch.arange(n, 0, -1, dtype=torch.float64, device=logs.device)
    spread = logs.flip(0).cumsum(0).flip(0) - sizes * logs
    small = n < _SMALL_SAMPLE
    alphas = 1 + (sizes - 1 if small else sizes) / spread
    allowed = (spread > 1e-12 * sizes) & (sizes >= (_SMALL_TAIL if small else SHORTEST_TAIL))
    if not bool(allowed.any()):
        return None
    distances = _tail_distances(logs, alphas)
    distances[~allowed] = float("inf")
    best = int(distances.argmin())
    tail, alpha = n - best, float(alphas[best])
    return PowerLaw(alpha, (alpha - 1) / math.sqrt(tail), float(values[best]), float(distances[best]), tail)


def alpha_range(values: torch.Tensor, dropped: int = 5) -> tuple[float, float] | None:
    """Smallest and largest alpha over fits that leave out the 0..``dropped`` largest values."""
    fits = [fit_power_law(values[: len(values) - count]) for count in range(dropped + 1)]
    alphas = [fit.alpha for fit in fits if fit is not None]
    return (min(alphas), max(alphas)) if alphas else None


def noise_distance(eigenvalues: torch.Tensor, short: int, long: int) -> NoiseDistance:
    """Compare a spectrum with the Marchenko-Pastur law of ratio q = short / long; nothing is fitted.

    Args:
        eigenvalues: ``[n]``: of one matrix, or of several of the same shape pooled; all of them.
        short: short side M of one matrix.
        long: long side N.
    """
    scaled = (eigenvalues / eigenvalues.mean()).sort().values
    n = len(scaled)
    law = marchenko_pastur_cdf(scaled, short / long)
    steps = torch.arange(n + 1, dtype=law.dtype, device=law.device) / n
    ks = torch.maximum((law - steps[:-1]).abs(), (law - steps[1:]).abs()).max()
    root_n, root_m = math.sqrt(long), math.sqrt(short)
    scale = (root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3) / long
    edge = (float(scaled[-1]) - (1 + root_m / root_n) ** 2) / scale
    return NoiseDistance(float(ks) * short, edge)


def marchenko_pastur_cdf(x: torch.Tensor, q: float) -> torch.Tensor:
    """The distribution function of the Marchenko-Pastur law with unit variance.

    Args:
        x: float64.
        q: short side over long side, in (0, 1].
    """
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    inside = x.clamp(low, high)
    above, below = high - inside, inside - low
    root = (above * below).clamp(min=0).sqrt()
    middle = torch.atan2(above - below, 2 * root)
    last = torch.atan2(low * above - high * below, 2 * (1 - q) * root) if q < 1 else torch.zeros_like(x)
    value = (math.pi * q + root - (1 + q) * middle + (1 - q) * last) / (2 * math.pi * q)
    value = torch.where(x <= low, torch.zeros_like(x), torch.where(x >= high, torch.ones_like(x), value))
    return value.clamp(0.0, 1.0)


def stable_rank(eigenvalues: torch.Tensor) -> float:
    """Sum over the largest: the rank that the energy stands for."""
    return float(eigenvalues.sum() / eigenvalues[-1])


def matrix_entropy(eigenvalues: torch.Tensor) -> float:
    """Entropy of the normalised eigenvalues over that of a flat spectrum, in [0, 1]."""
    if len(eigenvalues) < 2:
        return 0.0
    p = eigenvalues / eigenvalues.sum()
    return float(-torch.xlogy(p, p).sum() / math.log(len(p)))


def log_alpha_norm(eigenvalues: torch.Tensor, alpha: float) -> float:
    """log10 of the sum of eigenvalues to the power of alpha."""
    return float(torch.logsumexp(eigenvalues.log() * alpha, 0)) / math.log(10)


def _tail_distances(logs: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """D of every possible start of the tail, in blocks of starts."""
    n = len(logs)
    index = torch.arange(n, dtype=torch.float64, device=logs.device)
    distances = torch.empty(n, dtype=torch.float64, device=logs.device)
    start = 0
    while start < n:
        stop = min(n, start + max(1, min(_BLOCK // (n - start), n // 8)))
        first, ahead = index[start:stop, None], index[None, start:]
        beyond = (logs[None, start:] - logs[start:stop, None]).mul_(1 - alphas[start:stop, None]).exp_()
        distance = ((ahead - first) / (n - first)).add_(beyond).sub_(1).abs_()
        distance[:, : stop - start].triu_()
        distances[start:stop] = distance.amax(1)
        start = stop
    return distances.nan_to_num_(nan=float("inf"))


def uniform_edge(largest: float, rms: float) -> float:
    """max|w| over the bound of a uniform distribution of the same RMS: 1 for default layer initialisations."""
    return largest / (math.sqrt(3) * rms) if rms else 0.0
