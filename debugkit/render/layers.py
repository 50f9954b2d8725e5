"""The layers of a checkpoint on a terminal: a table, two histograms, and the spectrum of one layer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from debugkit.console.terminal import Page, printable
from debugkit.render.blocks import columns, histogram, scatter
from debugkit.weights.layer_spectrum import LayerSpectrum

_QUIET = "dim"
_SHOWN = 48
_HEADS = f"{'shape':>12} {'alpha':>15} {'D':>6} {'tail':>5} {'stable rank':>11}"
BINS = 50
_MOST = 12.0
_CUT = 4


def print_layers(page: Page, layers: Sequence[LayerSpectrum], marked: dict[str, str], *, full: bool) -> None:
    """Add the table, and the histograms of alpha.

    Args:
        page: where to.
        layers: in the order of depth.
        marked: level of the finding by parameter.
        full: show every layer.
    """
    page.blank()
    shown = _chosen(layers, marked, full)
    room = page.width - len(_HEADS) - 5
    page.line(Text(f"  {'layer':<{room}} {_HEADS}", "bold"))
    for layer in shown:
        _row(page, layer, marked.get(layer.parameter, ""), room)
    if len(shown) < len(layers):
        left = len(layers) - len(shown)
        page.line(Text(f"… and {left} more (-v shows them, --layers FILE.csv writes them)", _QUIET), indent=4)
    fitted = [layer for layer in layers if layer.judged and layer.power_law]
    if len(fitted) > 1:
        _alphas(page, [layer.power_law.alpha for layer in fitted if layer.power_law])


def print_spectrum(page: Page, layer: LayerSpectrum) -> None:
    """Add the eigenvalues of a layer on logarithmic axes: the share beyond each, and the fitted line.

    The smallest quarter is left out, which would take most of the width.
    """
    name = f"{layer.parameter} {layer.part}".strip()
    page.blank()
    page.line(Text(f"spectrum of {printable(name)}", "bold"))
    points, line = survival(layer)
    points = points[len(points) // _CUT :]
    if len(points) < 2:
        page.line(Text("there are no eigenvalues to plot", _QUIET), indent=2)
        return
    lines = scatter(points, line, page.width - 12, 14)
    highest, lowest = points[0][1], points[-1][1]
    for number, text in enumerate(lines):
        label = (
            f"10^{round(highest, 1) + 0.0}"
            if number == 0
            else f"10^{lowest:.1f}"
            if number == len(lines) - 1
            else ""
        )
        page.line(Text(f"{label:>8} │ ", _QUIET), text)
    left, right = f"10^{points[0][0]:.1f}", f"10^{points[-1][0]:.1f}"
    page.line(Text(f"{'':>8} └{'─' * (page.width - 11)}", _QUIET))
    page.line(Text(f"{'':>10}{left}{right:>{page.width - 12 - len(left)}}", _QUIET))
    said = "share of the eigenvalues at least as large (•)"
    if fit := layer.power_law:
        said += f"; fitted tail (·): alpha {fit.alpha:.2f} ± {fit.sigma:.2f} from {fit.xmin:.3g}, {fit.tail} values, D {fit.distance:.3f}"
    page.line(Text(said, _QUIET), indent=10)


def survival(layer: LayerSpectrum) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Points and fitted line, in log10: eigenvalue, share of the eigenvalues that are at least as large."""
    values = layer.eigenvalues[layer.count - layer.usable :]
    n = len(values)
    points = [(math.log10(value), math.log10((n - index) / n)) for index, value in enumerate(values.tolist())]
    fit = layer.power_law
    if fit is None or n < 2:
        return points, []
    start, end = math.log10(fit.xmin), points[-1][0]
    height = math.log10(fit.tail / n)
    line = [(float(x), height - (fit.alpha - 1) * (float(x) - start)) for x in np.linspace(start, end, 200)]
    return points, line


def worst(layers: Sequence[LayerSpectrum], marked: dict[str, str]) -> LayerSpectrum | None:
    """The layer to look at: the first with a finding, else the one of the largest alpha."""
    fitted = [layer for layer in layers if layer.power_law]
    named = [layer for layer in fitted if layer.parameter in marked]
    judged = [layer for layer in fitted if layer.judged] or fitted
    return (
        named[0]
        if named
        else max(judged, key=lambda one: one.power_law.alpha if one.power_law else 0, default=None)
    )


def _chosen(layers: Sequence[LayerSpectrum], marked: dict[str, str], full: bool) -> list[LayerSpectrum]:
    """All layers where they fit on a screen or two; else those with findings and the largest alphas, by depth."""
    if full or len(layers) <= _SHOWN:
        return list(layers)
    rank = sorted(
        range(len(layers)),
        key=lambda i: (
            layers[i].parameter not in marked,
            not layers[i].judged,
            -(fit.alpha if (fit := layers[i].power_law) else 0.0),
        ),
    )
    return [layers[index] for index in sorted(rank[: _SHOWN // 2])]


def _row(page: Page, layer: LayerSpectrum, level: str, room: int) -> None:
    name = f"{layer.parameter} {layer.part}".strip()
    fit = layer.power_law
    alpha = f"{fit.alpha:.2f} ± {fit.sigma:.2f}" if fit else "-"
    distance, tail = (f"{fit.distance:.3f}", str(fit.tail)) if fit else ("-", "-")
    if not layer.measured:
        alpha = "all zero" if layer.zero else "not finite"
    rank = f"{layer.stable_rank:.1f}" if layer.measured else "-"
    sign = {"warn": "!", "fail": "✗"}.get(level, " ")
    style = {"warn": "yellow", "fail": "red"}.get(level, _QUIET if not layer.judged else "")
    page.line(
        Text(
            f"{sign} {short_name(name, room):<{room}} {shape_of(layer.shape):>12} {alpha:>15} "
            f"{distance:>6} {tail:>5} {rank:>11}",
            style,
        )
    )


def _alphas(page: Page, alphas: list[float]) -> None:
    low, high = bounds(alphas)
    page.blank()
    page.line(Text("alpha", "bold"), Text(f": how many of the {len(alphas)} layers that are judged", _QUIET))
    for line in histogram(alphas, low, high, BINS, 5):
        page.line(Text(line, "cyan"), indent=2)
    page.line(Text(f"{low:<8.1f}{high:>{BINS - 8}.1f}{'+' if max(alphas) > high else ''}", _QUIET), indent=2)
    page.blank()
    page.line(Text("alpha by depth", "bold"), Text(", the first layer on the left", _QUIET))
    width = min(len(alphas), page.width - 12)
    groups = [alphas[len(alphas) * i // width : len(alphas) * (i + 1) // width] for i in range(width)]
    for number, line in enumerate(columns([max(group) for group in groups], 6, high)):
        label = f"{high:.1f}" if number == 0 else "0" if number == 5 else ""
        page.line(Text(f"  {label:>5} ", _QUIET), Text(line, "cyan"))


def bounds(alphas: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis of alpha."""
    return math.floor(min(alphas)), max(math.floor(min(alphas)) + 1.0, min(_MOST, math.ceil(max(alphas))))


def short_name(name: str, room: int) -> str:
    """The end of a name: what most layers share, its beginning and `.weight`, says least."""
    name = re.sub(r"\.weight(?= |$)", "", printable(name))
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def shape_of(shape: tuple[int, ...]) -> str:
    """Such as ``768x3072``."""
    return "x".join(map(str, shape))
