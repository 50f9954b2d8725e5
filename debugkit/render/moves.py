"""What moved between two checkpoints, on a terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.text import Text

from debugkit.checkpoints.comparison import Comparison, Move
from debugkit.console.terminal import Page, printable
from debugkit.render.blocks import columns, histogram
from debugkit.render.layers import BINS, bounds, shape_of, short_name
from debugkit.weights.layer_spectrum import LayerSpectrum

_QUIET = "dim"
_SHOWN = 20
_HEADS = f"{'shape':>12} {'moved':>7} {'cosine':>7} {'same':>5} {'alpha':>13} {'stable rank':>15}"


def print_comparison(
    page: Page,
    found: Comparison,
    names: tuple[str, str],
    before: Sequence[LayerSpectrum],
    after: Sequence[LayerSpectrum],
    *,
    full: bool,
) -> None:
    """Add what moved from one checkpoint to the other, the farthest first.

    Args:
        page: where to.
        found: what moved.
        names: of the two checkpoints.
        before: the layers of the first.
        after: the layers of the second.
        full: show every tensor.
    """
    page.blank()
    page.line(Text("what moved", "bold"))
    page.line(Text(f"from {printable(names[0])}", _QUIET), indent=2)
    page.line(Text(f"to {printable(names[1])}", _QUIET), indent=2)
    page.line(f"{len(found.moved)} of {len(found.moves)} shared tensors changed", indent=2)
    matrices = [move for move in found.moved if len(move.shape) > 1]
    vectors = [move for move in found.moved if len(move.shape) < 2]
    _table(page, matrices if full else matrices[:_SHOWN], before, after)
    if not full and len(matrices) > _SHOWN:
        page.line(Text(f"… and {len(matrices) - _SHOWN} more (-v shows them)", _QUIET), indent=4)
    if vectors:
        middle = statistics.median(move.distance for move in vectors)
        far = ", ".join(f"{printable(move.name)} {percent(move.distance)}" for move in vectors[:2])
        text = f"{len(vectors)} biases and scales: median {percent(middle)}, the farthest {far}"
        page.line(text, indent=2, hang=4)
    for label, one_side in (
        ("of another shape", found.reshaped),
        ("only in the first", found.only_first),
        ("only in the second", found.only_second),
    ):
        if one_side:
            more = f" and {len(one_side) - 4} more" if len(one_side) > 4 else ""
            text = f"{len(one_side)} {label}: {', '.join(map(printable, one_side[:4]))}{more}"
            page.line(text, indent=2, hang=4)
    _by_depth(page, [move for move in found.moves if len(move.shape) > 1])
    _histograms(page, before, after)


def percent(share: float) -> str:
    """Three digits of a share; what was all zero has moved ``from 0``."""
    if not math.isfinite(share):
        return "from 0" if math.isinf(share) else "NaN"
    return (
        f"{share:.2%}" if 0.00005 <= share < 0.1 else f"{share:.0%}" if not 0 < share < 0.00005 else "<0.01%"
    )


def _table(
    page: Page, moves: Sequence[Move], before: Sequence[LayerSpectrum], after: Sequence[LayerSpectrum]
) -> None:
    if not moves:
        return
    firsts: dict[str, LayerSpectrum] = {}
    for layer in before:
        firsts.setdefault(layer.parameter, layer)
    others = {(layer.parameter, layer.part): layer for layer in after}
    room = page.width - len(_HEADS) - 3
    page.line(Text(f"  {'tensor':<{room}} {_HEADS}", "bold"))
    for move in moves:
        one = firsts.get(move.name)
        other = others.get((move.other, one.part)) if one else None
        cosine = f"{move.cosine:.4f}" if math.isfinite(move.cosine) else "-"
        page.line(
            Text(
                f"  {short_name(move.name, room):<{room}} {shape_of(move.shape):>12} {percent(move.distance):>7} "
                f"{cosine:>7} {move.unchanged:>5.0%} {_turn(one, other, 'alpha'):>13} "
                f"{_turn(one, other, 'rank'):>15}"
            )
        )


def _by_depth(page: Page, moves: Sequence[Move]) -> None:
    distances = [move.distance if math.isfinite(move.distance) else 0.0 for move in moves]
    if len(distances) < 2 or not any(distances):
        return
    width = min(len(distances), page.width - 12)
    groups = [
        distances[len(distances) * i // width : len(distances) * (i + 1) // width] for i in range(width)
    ]
    page.blank()
    page.line(Text("moved by depth", "bold"), Text(", the first matrix on the left", _QUIET))
    for number, line in enumerate(columns([max(group) for group in groups], 5)):
        label = percent(max(distances)) if number == 0 else "0%" if number == 4 else ""
        page.line(Text(f"  {label:>7} ", _QUIET), Text(line, "cyan"))


def _histograms(page: Page, before: Sequence[LayerSpectrum], after: Sequence[LayerSpectrum]) -> None:
    """One over the other, on the same axes."""
    pair = [
        [layer.power_law.alpha for layer in side if layer.judged and layer.power_law]
        for side in (before, after)
    ]
    if any(len(side) < 2 for side in pair):
        return
    low, high = bounds([*pair[0], *pair[1]])
    page.blank()
    for label, side in zip(("alpha before", "alpha after"), pair, strict=True):
        for number, line in enumerate(histogram(side, low, high, BINS, 3)):
            page.line(Text(f"  {label if number == 2 else '':<14}"), Text(line, "cyan"))
    page.line(Text(f"{'':>16}{low:<8.1f}{high:>{BINS - 8}.1f}", _QUIET))


def _turn(one: LayerSpectrum | None, other: LayerSpectrum | None, what: str) -> str:
    if one is None or other is None or not (one.measured and other.measured):
        return ""
    if what == "rank":
        return f"{one.stable_rank:.1f} → {other.stable_rank:.1f}"
    if one.power_law is None or other.power_law is None:
        return ""
    return f"{one.power_law.alpha:.2f} → {other.power_law.alpha:.2f}"
