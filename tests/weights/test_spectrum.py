"""The single numbers that sum a spectrum up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from debugkit.weights import spectrum


def test_summaries_of_a_flat_and_a_peaked_spectrum() -> None:
    flat, peaked = np.ones(10), np.array([1e-12, 1e-12, 1.0])
    assert spectrum.stable_rank(flat) == pytest.approx(10)
    assert spectrum.matrix_entropy(flat) == pytest.approx(1)
    assert spectrum.stable_rank(peaked) == pytest.approx(1)
    assert spectrum.matrix_entropy(peaked) == pytest.approx(0, abs=1e-9)
    assert spectrum.log_alpha_norm(np.array([1.0, 2.0, 3.0]), 2.0) == pytest.approx(math.log10(14))
    assert spectrum.log_alpha_norm(np.array([1e-200, 1e200]), 9.0) == pytest.approx(1800)
