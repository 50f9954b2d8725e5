"""The noise law against its density and against noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from debugkit.weights.eigenvalues import gram_eigenvalues
from debugkit.weights.marchenko_pastur import marchenko_pastur_cdf, noise_distance


@pytest.mark.parametrize("q", [1.0, 0.999, 0.5, 0.1, 0.01])
def test_marchenko_pastur_integrates_its_density(q: float) -> None:
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    angle = np.linspace(0, math.pi, 200_001)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    root = np.sqrt(np.maximum((high - x) * (x - low), 0))
    density = root / (2 * math.pi * q * np.maximum(x, 1e-12)) * (high - low) / 2 * np.sin(angle)
    integral = np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angle))
    assert np.abs(integral - marchenko_pastur_cdf(x[1:], q)).max() < 1e-5
    assert marchenko_pastur_cdf(np.array([low - 1, high + 1]), q).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("ratio", [1, 2, 16])
@pytest.mark.parametrize("short", [32, 64, 128])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_noise(short: int, ratio: int, kind: str) -> None:
    for seed in range(10):
        draw = np.random.default_rng(seed)
        shape = (short, short * ratio)
        matrix = draw.random(shape) - 0.5 if kind == "uniform" else draw.standard_normal(shape) * 0.02
        found = noise_distance(gram_eigenvalues(matrix), *shape)
        assert found.is_noise, (short, ratio, seed, found)


def test_one_strong_direction_is_beyond_the_edge() -> None:
    matrix = np.random.default_rng(5).standard_normal((128, 256))
    matrix += 40 / math.sqrt(128 * 256)
    assert noise_distance(gram_eigenvalues(matrix), 128, 256).edge > 10
