"""Shares of a count: as text, and what the count proves about them."""

from __future__ import annotations


def percent(share: float, *, both_ends: bool = False) -> str:
    """A share as text, such as ``12 %``; with two decimals below 1 %, and above 99 % if ``both_ends``."""
    fine = 0 < share < 0.01 or (both_ends and 0.99 < share < 1)
    return (f"{share:.2%}" if fine else f"{share:.0%}").replace("%", " %")


def lower_bound(share: float, count: int, z: float) -> float:
    """The lower end of a share's Wilson score interval.

    Args:
        share: the share that was seen.
        count: the number of things that it was seen in.
        z: the normal quantile of the confidence, such as 2.33 for 99 % on one side.

    References:
        Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    centre = share + z * z / (2 * count)
    margin: float = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return (centre - margin) / (1 + z * z / count)
