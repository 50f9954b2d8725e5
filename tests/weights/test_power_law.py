"""The power-law fit against plain scalar code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from debugkit.weights import power_law


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [12, 19, 20, 64, 150])
def test_fit_agrees_with_a_scalar_loop(n: int, seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).random(n) ** -0.7)
    fit = power_law.fit_power_law(values)
    alpha, sigma, xmin, distance, tail = reference_fit(values.tolist())
    assert fit is not None
    assert fit.alpha == pytest.approx(alpha, rel=1e-10)
    assert fit.sigma == pytest.approx(sigma, rel=1e-10)
    assert (fit.xmin, fit.tail) == (xmin, tail)
    assert fit.distance == pytest.approx(distance, abs=1e-10)


def test_fit_in_blocks_is_the_fit_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.sort(np.random.default_rng(0).random(300) ** -0.5)
    whole = power_law.fit_power_law(values)
    monkeypatch.setattr(power_law, "_BLOCK", 1000)
    assert power_law.fit_power_law(values) == whole


def test_fit_recovers_the_exponent_of_a_pareto_sample() -> None:
    uniform = np.random.default_rng(1).random(5000)
    fit = power_law.fit_power_law(np.sort(uniform ** (-1 / 1.5)))
    assert fit is not None
    assert fit.alpha == pytest.approx(2.5, abs=4 * fit.sigma)


def test_fit_does_not_depend_on_the_scale() -> None:
    values = np.sort(np.random.default_rng(2).random(100) ** -0.5)
    one, other = power_law.fit_power_law(values), power_law.fit_power_law(values * 1e-6)
    assert one is not None
    assert other is not None
    assert one.alpha == pytest.approx(other.alpha, rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 40, list(range(1, 8))])
def test_no_fit_where_there_is_no_tail(values: list[float]) -> None:
    assert power_law.fit_power_law(np.array(values, dtype=np.float64)) is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [700, 1500])
def test_the_starts_that_are_ruled_out_early_are_never_the_best(n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = np.sort(draw.standard_normal(n) ** 2 if seed % 2 else draw.random(n) ** -0.6)
    logs = np.log(values)
    sizes = np.arange(n, 0, -1.0)
    alphas = np.ones(n)
    spread = logs[::-1].cumsum()[::-1] - sizes * logs
    alphas[:-1] += sizes[:-1] / spread[:-1]
    everywhere = power_law._distances(logs, alphas, np.arange(n - 1))
    fit = power_law.fit_power_law(values)
    assert fit is not None
    assert fit.distance == everywhere.min()
    assert n - fit.tail == everywhere.argmin()


def test_range_of_alpha_leaves_out_the_largest() -> None:
    values = np.sort(np.random.default_rng(3).random(200) ** -0.5)
    alphas = [power_law.fit_power_law(values[: 200 - count]) for count in range(6)]
    found = [fit.alpha for fit in alphas if fit is not None]
    assert power_law.alpha_range(values) == (min(found), max(found))
    assert power_law.alpha_range(values[:3]) is None
