"""The spectral measures against plain scalar code and known laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from debugkit.weights import spectrum


def reference_fit(values: list[float]) -> tuple[float, float, float, float, int]:
    """The power-law fit as a loop: alpha, sigma, xmin, D, tail."""
    n = len(values)
    best: tuple[float, float, float, float, int] | None = None
    for start in range(n - 1):
        tail = values[start:]
        k = len(tail)
        total = sum(math.log(value / tail[0]) for value in tail)
        if n < 20 and k < 8:
            continue
        alpha = 1 + (k - 1 if n < 20 else k) / total
        distance = max(
            abs(1 - (value / tail[0]) ** (1 - alpha) - position / k) for position, value in enumerate(tail)
        )
        if best is None or distance < best[3]:
            best = (alpha, (alpha - 1) / math.sqrt(k), tail[0], distance, k)
    assert best is not None
    return best


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [12, 19, 20, 64, 150])
def test_fit_agrees_with_a_scalar_loop(n: int, seed: int) -> None:
    values = (torch.rand(n, generator=generator(seed), dtype=torch.float64) ** -0.7).sort().values
    fit = spectrum.fit_power_law(values)
    alpha, sigma, xmin, distance, tail = reference_fit(values.tolist())
    assert fit is not None
    assert fit.alpha == pytest.approx(alpha, rel=1e-10)
    assert fit.sigma == pytest.approx(sigma, rel=1e-10)
    assert (fit.xmin, fit.tail) == (xmin, tail)
    assert fit.distance == pytest.approx(distance, abs=1e-10)


def test_fit_in_blocks_is_the_fit_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (torch.rand(300, generator=generator(0), dtype=torch.float64) ** -0.5).sort().values
    whole = spectrum.fit_power_law(values)
    monkeypatch.setattr(spectrum, "_BLOCK", 1000)
    assert spectrum.fit_power_law(values) == whole


def test_fit_recovers_the_exponent_of_a_pareto_sample() -> None:
    uniform = torch.rand(5000, generator=generator(1), dtype=torch.float64)
    fit = spectrum.fit_power_law((uniform ** (-1 / 1.5)).sort().values)
    assert fit is not None
    assert fit.alpha == pytest.approx(2.5, abs=4 * fit.sigma)


def test_fit_does_not_depend_on_the_scale() -> None:
    values = (torch.rand(100, generator=generator(2), dtype=torch.float64) ** -0.5).sort().values
    one, other = spectrum.fit_power_law(values), spectrum.fit_power_law(values * 1e-6)
    assert one is not None
    assert other is not None
    assert one.alpha == pytest.approx(other.alpha, rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 40, list(range(1, 8))])
def test_no_fit_where_there_is_no_tail(values: list[float]) -> None:
    assert spectrum.fit_power_law(torch.tensor(values, dtype=torch.float64)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (3, 33, 50)])
def test_gram_eigenvalues_are_squared_singular_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=generator(3)).to(dtype)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[..., ::-1] ** 2
    found = spectrum.gram_eigenvalues(matrix)
    assert found.dtype is torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_gram_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(30, 500, generator=generator(4))
    whole = spectrum.gram_eigenvalues(matrix)
    monkeypatch.setattr(spectrum, "_BLOCK", 30 * 7)
    assert torch.allclose(spectrum.gram_eigenvalues(matrix), whole, rtol=1e-10)


@pytest.mark.parametrize("q", [1.0, 0.999, 0.5, 0.1, 0.01])
def test_marchenko_pastur_integrates_its_density(q: float) -> None:
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    angle = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
    x = (low + high) / 2 - (high - low) / 2 * angle.cos()
    density = ((high - x) * (x - low)).clamp(min=0).sqrt() / (2 * math.pi * q * x.clamp(min=1e-12))
    integral = torch.cumulative_trapezoid(density * (high - low) / 2 * angle.sin(), angle)
    assert float((integral - spectrum.marchenko_pastur_cdf(x[1:], q)).abs().max()) < 1e-5
    outside = torch.tensor([low - 1, high + 1], dtype=torch.float64)
    assert spectrum.marchenko_pastur_cdf(outside, q).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("ratio", [1, 2, 16])
@pytest.mark.parametrize("short", [32, 64, 128])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_noise(short: int, ratio: int, kind: str) -> None:
    for seed in range(10):
        draw = torch.randn if kind == "normal" else torch.rand
        matrix = draw(short, short * ratio, generator=generator(seed))
        matrix = matrix - 0.5 if kind == "uniform" else matrix * 0.02
        found = spectrum.noise_distance(spectrum.gram_eigenvalues(matrix), short, short * ratio)
        assert found.is_noise, (short, ratio, seed, found)


def test_one_strong_direction_is_beyond_the_edge() -> None:
    matrix = torch.randn(128, 256, generator=generator(5))
    matrix += 40 * torch.outer(torch.ones(128), torch.ones(256)) / math.sqrt(128 * 256)
    assert spectrum.noise_distance(spectrum.gram_eigenvalues(matrix), 128, 256).edge > 10


def test_rounding_floor_separates_rank_from_rounding() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(96, 8, generator=generator(6)), torch.randn(8, 128, generator=generator(7))
        values = spectrum.gram_eigenvalues((left @ right).to(dtype))
        assert int((values > spectrum.rounding_floor(values, 128, dtype)).sum()) == 8
        full = spectrum.gram_eigenvalues(torch.randn(96, 128, generator=generator(8)).to(dtype))
        assert int((full > spectrum.rounding_floor(full, 128, dtype)).sum()) == 96


def test_summaries_of_a_flat_and_a_peaked_spectrum() -> None:
    flat, peaked = torch.ones(10, dtype=torch.float64), torch.tensor([1e-12, 1e-12, 1.0], dtype=torch.float64)
    assert spectrum.stable_rank(flat) == pytest.approx(10)
    assert spectrum.matrix_entropy(flat) == pytest.approx(1)
    assert spectrum.stable_rank(peaked) == pytest.approx(1)
    assert spectrum.matrix_entropy(peaked) == pytest.approx(0, abs=1e-9)
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert spectrum.log_alpha_norm(values, 2.0) == pytest.approx(math.log10(14))
