"""Layers whose spectrum falls off so steeply that they have learned few strong directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from debugkit import Finding, note, warn
from debugkit.weights.layer_spectrum import LayerSpectrum

from ._layer_words import fit_of, listed, numbers_of, part_of

_WEAK_TAIL_EIGENVALUES = 128
_FEW_WEAK = 2
_FEW_WEAK_SHARE = 0.05
_POOR_FIT = 0.15


def has_weak_tail(layer: LayerSpectrum, max_alpha: float, min_sigmas: float) -> bool:
    """Whether alpha is above a bound by a good fit, whichever of the top eigenvalues are left out."""
    fit = layer.power_law
    return (
        fit is not None
        and layer.usable >= _WEAK_TAIL_EIGENVALUES
        and fit.distance <= _POOR_FIT
        and fit.alpha - max_alpha > min_sigmas * fit.sigma
        and layer.alpha_range is not None
        and layer.alpha_range[0] > max_alpha
    )


def _weak(layer: LayerSpectrum, max_alpha: float) -> Finding:
    return warn(
        f"`{layer.parameter}`{part_of(layer)} has a weak tail: {fit_of(layer)} stays above {max_alpha:g}, so it has "
        "learned few strong directions",
        where=layer.parameter,
        hint="compare its gradient and learning rate with its neighbours' over a longer training",
        **numbers_of(layer),
    )


def weak_tails(
    weak: list[LayerSpectrum], judged: Sequence[LayerSpectrum], max_alpha: float
) -> Iterator[Finding]:
    """A few weak tails stand out; many are how this model is."""
    if len(weak) <= max(_FEW_WEAK, _FEW_WEAK_SHARE * len(judged)):
        yield from (_weak(layer, max_alpha) for layer in weak)
        return
    yield note(
        f"alpha stays above {max_alpha:g} in {listed(weak)}, of {len(judged)}. With so many, it is "
        "a property of this model, and no layer stands out",
        layers=len(weak),
    )
