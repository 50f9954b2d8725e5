"""Facts that the eigenvalues do not tell, and the values that must not be mistaken for something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from debugkit.weights.engine import analyse
from debugkit.weights.layer_spectrum import LayerSpectrum
from debugkit.weights.matrix import Array, Matrix, equal_parts


def spectra(values: Array, **facts: Any) -> tuple[LayerSpectrum, ...]:
    dtype = "bfloat16" if values.dtype == np.uint16 else str(values.dtype)
    return analyse(
        [Matrix("w", facts.pop("kind", "linear"), values.shape, dtype, lambda: values, **facts)]
    ).layers


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_values_without_a_spectrum_are_told_apart() -> None:
    broken = noise(64, 64)
    broken[3, 4] = np.nan
    assert not spectra(broken)[0].finite
    assert spectra(np.zeros((64, 64), np.float32))[0].zero
    assert not spectra(np.full((64, 64), 1e200))[0].finite
    constant = spectra(np.full((64, 64), 0.5, np.float32))[0]
    assert constant.collapsed
    assert constant.power_law is None


def test_scale_changes_neither_alpha_nor_verdict() -> None:
    values = noise(128, 128) * np.linspace(0.1, 3, 128, dtype=np.float32)
    one, other = spectra(values)[0], spectra(values * np.float32(2.0**-10))[0]
    assert one.power_law is not None
    assert other.power_law is not None
    assert one.power_law.alpha == pytest.approx(other.power_law.alpha, rel=1e-9)
    assert other.weightwatcher is not None
    assert spectra(values * np.float32(2.0**-16))[0].weightwatcher != other.power_law


def test_dead_and_duplicate_outputs_are_counted() -> None:
    values = noise(64, 96)
    values[5] = 0
    values[[7, 8]] = values[6]
    layer = spectra(values)[0]
    assert (layer.dead_rows, layer.duplicate_rows) == (1, 2)
    transposed = spectra(np.ascontiguousarray(values.T), outputs=1)[0]
    assert (transposed.dead_rows, transposed.duplicate_rows) == (1, 2)
    taps = noise(64, 40, 3, 3)
    taps[9] = 0
    conv = spectra(taps, kind="conv")[0]
    assert (conv.dead_rows, conv.duplicate_rows) == (1, 0)


def test_large_entries_make_a_correlation_trap_and_a_strong_direction_does_not() -> None:
    trap = noise(128, 128)
    trap[3, 4] = 60
    assert spectra(trap)[0].correlation_trap
    shifted = spectra(noise(128, 128) + 2)[0]
    assert shifted.correlation_trap
    left, right = noise(128, 1, seed=1), noise(1, 128, seed=2)
    direction = spectra(noise(128, 128) + left @ right)[0]
    assert direction.spikes == pytest.approx(1 / 128)
    assert not direction.correlation_trap
    assert spectra(noise(128, 128))[0].spikes == 0


def test_orthogonal_parameters_are_seen_whole() -> None:
    whole = np.linalg.qr(noise(192, 64))[0].astype(np.float32)
    parts = spectra(whole, parts=equal_parts(("query", "key", "value"), 192))
    assert [layer.part for layer in parts] == ["query", "key", "value"]
    assert all(layer.orthogonal for layer in parts)
    assert not any(layer.orthogonal for layer in spectra(noise(192, 64), parts=equal_parts("abc", 192)))


def test_default_initialisation_of_torch_is_uniform() -> None:
    values = (np.random.default_rng(0).random((64, 64)) * 2 - 1).astype(np.float32)
    assert spectra(values)[0].uniform
    assert not spectra(noise(64, 64))[0].uniform
    half = spectra(values.astype(np.float16))[0]
    assert half.uniform
    assert half.finite


def test_values_of_few_levels_are_not_judged() -> None:
    values = np.round(noise(64, 96) * 2).clip(-7, 7)
    layer = spectra(values)[0]
    assert layer.unjudged == "dequantised from 4 bits"
    assert not layer.judged


def test_measures_follow_from_the_eigenvalues() -> None:
    values = noise(64, 96) * np.linspace(0.1, 3, 96, dtype=np.float32)
    layer = spectra(values)[0]
    assert layer.power_law is not None
    assert layer.frobenius_norm == pytest.approx(np.linalg.norm(values), rel=1e-6)
    assert layer.log_spectral_norm == pytest.approx(2 * np.log10(np.linalg.norm(values, 2)), rel=1e-6)
    assert layer.alpha_hat == pytest.approx(layer.power_law.alpha * layer.log_spectral_norm)
    assert layer.alpha_range is not None
    assert layer.alpha_range[0] <= layer.power_law.alpha <= layer.alpha_range[1]
    assert layer.weightwatcher == layer.power_law


def test_stacked_experts_and_unequal_parts() -> None:
    experts = spectra(noise(3, 64, 96), kind="experts", parts=tuple((f"expert {i}", 1) for i in range(3)))
    assert [(layer.part, layer.count) for layer in experts] == [(f"expert {i}", 64) for i in range(3)]
    fused = spectra(noise(96, 160), axis=1, outputs=1, parts=(("query", 96), ("key", 32), ("value", 32)))
    assert [(layer.part, layer.short, layer.long) for layer in fused] == [
        ("query", 96, 96),
        ("key", 32, 96),
        ("value", 32, 96),
    ]


@pytest.mark.parametrize("spread", [0.8, 1.0, 1.3])
def test_randomised_edge_is_that_of_permuted_entries(spread: float) -> None:
    draw = np.random.default_rng(3)
    values = draw.standard_normal((256, 384)) * draw.lognormal(0, spread, (256, 384))
    permuted = draw.permutation(values.reshape(-1)).reshape(values.shape)
    noise_of = spectra(permuted)[0].noise
    assert noise_of is not None
    assert spectra(values)[0].randomised_edge == pytest.approx(noise_of.edge, rel=0.25)
