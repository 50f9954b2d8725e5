"""Lowest values with and without bounds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from debugkit.trials.descent import descend_freely, descend_within


def bounds(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([low]), torch.tensor([high])


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_cross_entropy_between_bounds(classes: int) -> None:
    y = torch.arange(8) % classes
    best, certified = descend_within(lambda z: F.cross_entropy(z, y), torch.zeros(8, classes), *bounds(-1, 1))
    exact = math.log(1 + (classes - 1) * math.exp(-2))
    assert certified <= exact + 1e-5
    assert best == pytest.approx(exact, rel=1e-3)
    assert certified == pytest.approx(exact, rel=1e-2)


def test_squares_between_bounds() -> None:
    y = torch.tensor([-2.0, 0.5, 3.0])
    best, certified = descend_within(lambda z: F.mse_loss(z, y), torch.zeros(3), *bounds(-1, 1))
    assert best == pytest.approx(5 / 3, rel=1e-3)
    assert certified == pytest.approx(5 / 3, rel=1e-2)


def test_without_bounds_label_smoothing_is_the_floor() -> None:
    y = torch.arange(6) % 3
    lowest, _ = descend_freely(lambda z: F.cross_entropy(z, y, label_smoothing=0.1), torch.zeros(6, 3))
    p = torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    assert lowest == pytest.approx(float(-(p * p.log()).sum()), rel=1e-3)


def test_values_that_are_no_numbers() -> None:
    lowest, _ = descend_freely(lambda z: (z - 5).log().sum(), torch.full((3,), 6.0))
    assert not math.isfinite(lowest) or lowest < 0
