"""Plots made of block characters, for terminals and logs."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def histogram(values: Sequence[float], low: float, high: float, bins: int, height: int) -> list[str]:
    """Lines of a histogram, the highest first; values beyond the ends count in the last bin of that side."""
    counts = [0] * bins
    for value in values:
        counts[max(0, min(bins - 1, int((value - low) / (high - low) * bins)))] += 1
    return columns(counts, height)


def columns(heights: Sequence[float], height: int, top: float | None = None) -> list[str]:
    """Lines of columns as high as the values; what is not zero shows."""
    top = top or max(heights, default=0) or 1.0
    eighths = [min(8 * height, max(int(value > 0), round(8 * height * value / top))) for value in heights]
    return [
        "".join(_EIGHTHS[max(0, min(8, filled - 8 * row))] for filled in eighths)
        for row in reversed(range(height))
    ]


def scatter(
    points: Sequence[tuple[float, float]], line: Sequence[tuple[float, float]], width: int, height: int
) -> list[str]:
    """Lines of a plot of points (•), with a line (─ ╲) of the same coordinates under them."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right, bottom, top = min(xs), max(xs), min(ys), max(ys)
    grid = [[" "] * width for _ in range(height)]

    def put(x: float, y: float, char: str) -> None:
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        column = round((x - left) / ((right - left) or 1) * (width - 1))
        row = round((top - y) / ((top - bottom) or 1) * (height - 1))
        if 0 <= column < width and 0 <= row < height:
            grid[row][column] = char

    for x, y in line:
        put(x, y, "·")
    for x, y in points:
        put(x, y, "•")
    return ["".join(row).rstrip() for row in grid]
