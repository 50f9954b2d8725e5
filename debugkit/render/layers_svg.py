"""The same plots as one SVG picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from debugkit.console.terminal import printable
from debugkit.render.layers import survival
from debugkit.weights.layer_spectrum import LayerSpectrum

_WIDTH, _HEIGHT, _MARGIN, _GAP = 960, 300, 48, 24
_BINS = 30
_STYLE = (
    "text{font-family:'DejaVu Sans',Arial,sans-serif;font-size:12px;fill:#444}.t{font-weight:600;fill:#111}.a{stroke:#999;fill:none}"
    ".b{fill:#3b7dd8}.l{stroke:#d8483b;stroke-width:2;fill:none}"
)


def svg(layers: Sequence[LayerSpectrum], chosen: LayerSpectrum | None) -> str:
    """Histogram of alpha, alpha against depth, and the spectrum of a layer, side by side."""
    alphas = [layer.power_law.alpha for layer in layers if layer.judged and layer.power_law]
    wide = (_WIDTH - 2 * _GAP) // 3
    parts = [_histogram(alphas, wide), _depth(alphas, wide), _spectrum(chosen, wide)]
    drawn = "".join(
        f'<g transform="translate({number * (wide + _GAP)},0)">{part}</g>'
        for number, part in enumerate(parts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}"><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n'
    )


class _Axes:
    """A frame with a title, and where a point lies in it."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], width: int) -> None:
        self._x, self._y = xs, ys
        self.left, self.right, self.top, self.bottom = _MARGIN, width - 8, 34, _HEIGHT - 44

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        across = (x - x0) / ((x1 - x0) or 1)
        up = (y - y0) / ((y1 - y0) or 1)
        return (
            round(self.left + across * (self.right - self.left), 1),
            round(self.bottom - up * (self.bottom - self.top), 1),
        )

    def frame(self, title: str, below: str, form: str = "{:.1f}") -> str:
        x0, x1 = (form.format(x) for x in self._x)
        y0, y1 = (form.format(y) for y in self._y)
        middle = (self.left + self.right) / 2
        return (
            f'<text class="t" x="{self.left}" y="18">{escape(printable(title))}</text>'
            f'<path class="a" d="M{self.left} {self.top}V{self.bottom}H{self.right}"/>'
            f'<text x="{self.left}" y="{self.bottom + 16}">{x0}</text>'
            f'<text x="{self.right}" y="{self.bottom + 16}" text-anchor="end">{x1}</text>'
            f'<text x="{middle}" y="{self.bottom + 34}" text-anchor="middle">{escape(printable(below))}</text>'
            f'<text x="{self.left - 4}" y="{self.bottom}" text-anchor="end">{y0}</text>'
            f'<text x="{self.left - 4}" y="{self.top + 10}" text-anchor="end">{y1}</text>'
        )

    def dots(self, points: Iterable[tuple[float, float]]) -> str:
        places = (self.at(x, y) for x, y in points)
        return "".join(f'<circle class="b" cx="{x}" cy="{y}" r="2"/>' for x, y in places)


def _histogram(alphas: Sequence[float], width: int) -> str:
    if not alphas:
        return ""
    low, high = min(alphas), max(alphas) + 1e-9
    counts = [0] * _BINS
    for alpha in alphas:
        counts[min(_BINS - 1, int((alpha - low) / (high - low) * _BINS))] += 1
    axes = _Axes((low, high), (0, max(counts)), width)
    bars = ""
    for index, count in enumerate(counts):
        x, y = axes.at(low + index * (high - low) / _BINS, count)
        bars += f'<rect class="b" x="{x}" y="{y}" width="{(axes.right - axes.left) / _BINS - 1:.1f}" height="{axes.bottom - y:.1f}"/>'
    return axes.frame(f"alpha of {len(alphas)} layers", "alpha") + bars


def _depth(alphas: Sequence[float], width: int) -> str:
    if not alphas:
        return ""
    axes = _Axes((1, len(alphas)), (0, max(alphas)), width)
    return axes.frame("alpha by depth", "layer") + axes.dots(enumerate(alphas, 1))


def _spectrum(layer: LayerSpectrum | None, width: int) -> str:
    if layer is None:
        return ""
    points, line = survival(layer)
    points = points[len(points) // 20 :]
    if len(points) < 2:
        return ""
    axes = _Axes((points[0][0], points[-1][0]), (points[-1][1], points[0][1]), width)
    inside = [(x, y) for x, y in line if y >= points[-1][1]]
    path = "L".join(f"{x} {y}" for x, y in (axes.at(x, y) for x, y in inside))
    name = f"{layer.parameter.removesuffix('.weight')} {layer.part}".strip()
    fit = layer.power_law
    below = "log10 eigenvalue" + (f"; alpha {fit.alpha:.2f} ± {fit.sigma:.2f}" if fit else "")
    drawn = axes.frame("…" + name[-29:] if len(name) > 30 else name, below) + axes.dots(points)
    return drawn + (f'<path class="l" d="M{path}"/>' if path else "")
