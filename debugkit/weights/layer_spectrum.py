"""The spectrum of one layer, in the measures of the literature."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from debugkit.weights import spectrum
from debugkit.weights.eigenvalues import rounding_floors
from debugkit.weights.marchenko_pastur import NoiseDistance, bulk_edge, noise_distance, tracy_widom_scale
from debugkit.weights.matrix import Array, Matrix
from debugkit.weights.power_law import PowerLaw, alpha_range, fit_power_law
from debugkit.weights.readings import Reading

FEWEST_EIGENVALUES = 50
SHORTEST_SIDE = 32
_WEIGHTWATCHER_FLOOR = 1e-5
_CLEAR_OF_EDGE = 4.0


def _no_values() -> Array:
    return np.empty(0)


@dataclass(frozen=True)
class LayerSpectrum:
    """The spectrum of one weight matrix, or of the slices of one convolution, pooled.

    Attributes:
        parameter: dotted name of the parameter.
        part: which part of a fused parameter, such as ``forget gate`` or ``expert 3``; empty for a whole one.
        kind: ``linear``, ``conv``, ``attention``, ``recurrent``, ``experts``, ``embedding`` or ``other``.
        shape: shape of the parameter.
        short: short side M of one matrix.
        long: long side N.
        trainable: whether the parameter requires a gradient.
        unjudged: why the layer is reported without a verdict; empty where nothing speaks against one.
        finite: whether no value is NaN or infinite; nothing below is measured otherwise.
        zero: whether every value is 0; nothing below is measured then.
        eigenvalues: of WᵀW, ascending, those of all slices pooled; convolutions count half, as WeightWatcher has it.
        usable: how many of them rounding leaves.
        collapsed: whether rounding leaves under half of them, in every slice.
        orthogonal: whether the eigenvalues are all the same, as orthogonal and identity matrices have them.
        uniform: whether the values are those of a uniform distribution with a sharp edge, the default
            initialisation of torch's layers.
        noise: distance from the spectrum of independent values.
        power_law: the fit of the tail.
        weightwatcher: the fit as WeightWatcher 0.7.7 has it: of the eigenvalues over 1e-5, whatever their scale.
        frobenius_norm: root of the sum of the squared values.
        stable_rank: sum of the eigenvalues over the largest.
        entropy: entropy of the eigenvalues over that of a flat spectrum.
        log_alpha_norm: log10 of the sum of eigenvalues to the power of alpha.
        bulk_edge: upper edge of the Marchenko-Pastur law for the values' own variance.
        spikes: share of the eigenvalues that lie clearly beyond the edge.
        randomised_edge: how far the largest eigenvalue lies beyond the edge once the entries are permuted, in
            Tracy-Widom scales.
        dead_rows: outputs whose weights are all 0.
        duplicate_rows: outputs whose weights repeat those of an earlier output.
    """

    parameter: str
    part: str
    kind: str
    shape: tuple[int, ...]
    short: int
    long: int
    trainable: bool = True
    unjudged: str = ""
    finite: bool = True
    zero: bool = False
    eigenvalues: Array = field(default_factory=_no_values, repr=False, compare=False)
    usable: int = 0
    collapsed: bool = False
    orthogonal: bool = False
    uniform: bool = False
    noise: NoiseDistance | None = None
    power_law: PowerLaw | None = None
    weightwatcher: PowerLaw | None = None
    frobenius_norm: float = 0.0
    stable_rank: float = 0.0
    entropy: float = 0.0
    log_alpha_norm: float = 0.0
    bulk_edge: float = 0.0
    spikes: float = 0.0
    randomised_edge: float = 0.0
    dead_rows: int = 0
    duplicate_rows: int = 0

    @property
    def count(self) -> int:
        """Number of eigenvalues."""
        return len(self.eigenvalues)

    @property
    def largest(self) -> float:
        """The largest eigenvalue: the squared spectral norm."""
        return float(self.eigenvalues[-1]) if self.count else 0.0

    @property
    def log_spectral_norm(self) -> float:
        """log10 of the largest eigenvalue."""
        return math.log10(self.largest) if self.largest > 0 else 0.0

    @property
    def alpha_hat(self) -> float:
        """Weighted alpha: alpha times the log spectral norm."""
        return self.power_law.alpha * self.log_spectral_norm if self.power_law else 0.0

    @cached_property
    def alpha_range(self) -> tuple[float, float] | None:
        """Smallest and largest alpha when the 0 to 5 largest eigenvalues are left out."""
        return alpha_range(self.eigenvalues[self.count - self.usable :]) if self.usable else None

    @property
    def correlation_trap(self) -> bool:
        """Whether single entries are so large that they stand out of the noise even when all are permuted."""
        return self.randomised_edge > _CLEAR_OF_EDGE

    @property
    def measured(self) -> bool:
        """Whether there is a spectrum at all."""
        return self.finite and not self.zero

    @property
    def judged(self) -> bool:
        """Whether there are enough eigenvalues for a verdict on their distribution, and nothing speaks against it."""
        enough = self.usable >= FEWEST_EIGENVALUES and self.short >= SHORTEST_SIDE
        return self.measured and not self.collapsed and enough and not self.unjudged

    @property
    def role(self) -> tuple[str, str, tuple[int, ...]]:
        """What layers of the same place in different blocks share: name without numbers, part, shape."""
        return re.sub(r"\d+", "#", self.parameter), re.sub(r"\d+", "#", self.part), self.shape


def layer_spectra(matrix: Matrix, readings: list[Reading], precision: str = "float64") -> list[LayerSpectrum]:
    """The spectrum of each part of a parameter, from what was read."""
    return [
        _layer(matrix, label, min(sides), max(sides), reading, precision)
        for (label, _, *sides), reading in zip(matrix.sides, readings, strict=True)
    ]


def _layer(
    matrix: Matrix, part: str, short: int, long: int, reading: Reading, precision: str
) -> LayerSpectrum:
    unjudged = matrix.unjudged or ("dequantised from 4 bits" if reading.few_levels else "")
    names = (matrix.name, part, matrix.kind, matrix.shape, short, long, matrix.trainable, unjudged)
    if not reading.finite or reading.zero:
        return LayerSpectrum(*names, finite=reading.finite, zero=reading.zero)
    total = float(reading.eigenvalues.sum())
    each = reading.eigenvalues / 2 if matrix.kind == "conv" else reading.eigenvalues
    floors = rounding_floors(each, long, matrix.epsilon, precision)
    pooled = each[0] if len(each) == 1 else np.sort(each, axis=None)
    usable = pooled[np.searchsorted(pooled, floors.max(), "right") :]
    fit = fit_power_law(usable)
    over = pooled[np.searchsorted(pooled, _WEIGHTWATCHER_FLOOR, "right") :]
    mean = float(pooled.mean())
    edge = mean * bulk_edge(short, long)
    clear = edge + _CLEAR_OF_EDGE * mean * tracy_widom_scale(short, long)
    return LayerSpectrum(
        *names,
        eigenvalues=pooled,
        usable=len(usable),
        collapsed=bool(2 * (each > floors[:, None]).sum(1).max() < short),
        orthogonal=reading.orthogonal,
        uniform=reading.uniform,
        noise=noise_distance(pooled, short, long),
        power_law=fit,
        weightwatcher=fit if len(over) == len(usable) else fit_power_law(over),
        frobenius_norm=math.sqrt(total),
        stable_rank=spectrum.stable_rank(pooled),
        entropy=spectrum.matrix_entropy(usable),
        log_alpha_norm=spectrum.log_alpha_norm(usable, fit.alpha) if fit else 0.0,
        bulk_edge=edge,
        spikes=float((pooled > clear).mean()),
        randomised_edge=reading.randomised_edge,
        dead_rows=reading.dead_rows,
        duplicate_rows=reading.duplicate_rows,
    )
