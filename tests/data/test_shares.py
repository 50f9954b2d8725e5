"""Shares as text and their lower bounds."""

from __future__ import annotations

import pytest

from debugkit.data.shares import lower_bound, percent


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.004, "0.40 %"), (0.126, "13 %"), (0.996, "100 %"), (1.0, "100 %")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_percent_near_one() -> None:
    assert percent(0.996, both_ends=True) == "99.60 %"
    assert percent(1.0, both_ends=True) == "100 %"


def test_lower_bound_tightens_with_the_count() -> None:
    bounds = [lower_bound(0.3, count, 2.33) for count in (10, 100, 10_000)]
    assert bounds == sorted(bounds)
    assert bounds[0] > 0
    assert bounds[-1] == pytest.approx(0.3, abs=0.02)
    assert lower_bound(0.5, 4, 1.96) == pytest.approx(0.15, abs=0.001)
