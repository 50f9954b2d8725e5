"""Eigenvalues of Gram matrices against singular values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from debugkit.weights import eigenvalues, pages
from debugkit.weights.matrix import Array


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bits_of(values: Array) -> Array:
    """The upper halves of float32, as bfloat16 has them."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (3, 33, 50)])
def test_gram_eigenvalues_are_squared_singular_values(shape: tuple[int, ...], dtype: str) -> None:
    matrix = bits_of(draw(*shape)) if dtype == "bfloat16" else draw(*shape).astype(dtype)
    plain = eigenvalues.widened(matrix).astype(np.float64)
    expected = np.linalg.svd(plain, compute_uv=False)[..., ::-1] ** 2
    found = eigenvalues.gram_eigenvalues(matrix)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(eigenvalues.gram_eigenvalues(matrix, "float32"), expected, rtol=1e-3)
    np.testing.assert_allclose(eigenvalues.gram_eigenvalues(matrix, device="cpu"), expected, rtol=1e-9)


def test_bits_of_bfloat16_become_its_values() -> None:
    torch = pytest.importorskip("torch")
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    bits = values.view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(eigenvalues.widened(bits), values.float().numpy())


def test_gram_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = draw(30, 500)
    whole = eigenvalues.gram_eigenvalues(matrix)
    monkeypatch.setattr(eigenvalues, "_BLOCK", 30 * 7)
    np.testing.assert_allclose(eigenvalues.gram_eigenvalues(matrix), whole, rtol=1e-10)
    np.testing.assert_allclose(eigenvalues.gram_eigenvalues(matrix.T), whole, rtol=1e-10)


def test_products_that_overflow_have_no_eigenvalues() -> None:
    assert np.isnan(eigenvalues.gram_eigenvalues(np.full((4, 4), 1e200))).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_floor_separates_rank_from_rounding(dtype: str) -> None:
    epsilon = 2.0**-7 if dtype == "bfloat16" else 2.0**-23
    for rank, matrix in ((8, draw(96, 8) @ draw(8, 128, seed=1)), (96, draw(96, 128, seed=2))):
        if dtype == "bfloat16":
            matrix = bits_of(matrix + matrix * 2.0**-9)
        values = eigenvalues.gram_eigenvalues(matrix)
        assert int((values > eigenvalues.rounding_floors(values, 128, epsilon)).sum()) == rank


def test_values_mapped_from_a_file_are_the_same_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = draw(300, 40)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.float32, "r", shape=(300, 40))
    monkeypatch.setattr(pages, "_HELD", 1)
    monkeypatch.setattr(eigenvalues, "_BLOCK", 40 * 32)
    np.testing.assert_allclose(
        eigenvalues.gram_eigenvalues(mapped), eigenvalues.gram_eigenvalues(values), rtol=1e-12
    )
    assert pages._mapping_of(mapped[3:]) is not None
    assert pages._mapping_of(values) is None
