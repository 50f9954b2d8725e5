"""Single numbers that sum a spectrum up, as the literature of heavy-tailed self-regularisation defines them."""

from __future__ import annotations

import math

import numpy as np

from debugkit.weights.matrix import Array


def stable_rank(eigenvalues: Array) -> float:
    """Sum over the largest: the rank that the energy stands for."""
    return float(eigenvalues.sum() / eigenvalues[-1])


def matrix_entropy(eigenvalues: Array) -> float:
    """Entropy of the normalised eigenvalues, all positive, over that of a flat spectrum, in [0, 1]."""
    if len(eigenvalues) < 2:
        return 0.0
    p = eigenvalues / eigenvalues.sum()
    return float(-(p * np.log(p)).sum() / math.log(len(p)))


def log_alpha_norm(eigenvalues: Array, alpha: float) -> float:
    """log10 of the sum of eigenvalues, all positive, to the power of alpha."""
    powers = np.log(eigenvalues) * alpha
    largest = float(powers.max())
    return (largest + math.log(float(np.exp(powers - largest).sum()))) / math.log(10)


def uniform_edge(largest: float, rms: float) -> float:
    """max|w| over the bound of a uniform distribution of the same RMS: 1 for default layer initialisations."""
    return largest / (math.sqrt(3) * rms) if rms else 0.0
