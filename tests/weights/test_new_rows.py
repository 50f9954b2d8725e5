"""Rows that were added to a table later."""

from __future__ import annotations

import pytest
import torch

from debugkit.weights.new_rows import NewRows, new_rows


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def test_a_table_without_new_rows(table: torch.Tensor) -> None:
    assert new_rows(table, None) is None
    assert new_rows(torch.zeros(40, 8), None) is None


def test_rows_at_the_mean_of_norm_zero_and_far_outside(table: torch.Tensor) -> None:
    for added, mark in ((table.mean(0), "mean"), (torch.zeros(8), "zero"), (torch.full((8,), 50.0), "norm")):
        grown = torch.cat([table, added.expand(3, -1)])
        assert new_rows(grown, None) == NewRows(range(40, 43), mark)  # type: ignore[arg-type]


def test_zeros_elsewhere_are_a_habit_of_the_table_unless_one_is_padding(table: torch.Tensor) -> None:
    grown = torch.cat([table, torch.zeros(2, 8)])
    grown[0] = 0
    assert new_rows(grown, None) is None
    assert new_rows(grown, 0) == NewRows(range(40, 42), "zero")
