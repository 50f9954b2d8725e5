"""Spectra of layers in words."""

from __future__ import annotations

from collections import Counter
from typing import Any

from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.weights.layer_spectrum import LayerSpectrum


def part_of(layer: LayerSpectrum) -> str:
    """The part of a fused parameter, in brackets."""
    return f" ({layer.part})" if layer.part else ""


def fit_of(layer: LayerSpectrum) -> str:
    """Alpha with its error, tail, distance and stability."""
    fit = layer.power_law
    if fit is None or layer.alpha_range is None:
        return "no power law fits"
    low, high = layer.alpha_range
    return (
        f"alpha {fit.alpha:.2f} ± {fit.sigma:.2f} over a tail of {fit.tail} (D {fit.distance:.3f}; {low:.2f} to "
        f"{high:.2f} without up to 5 top eigenvalues)"
    )


def numbers_of(layer: LayerSpectrum) -> dict[str, Any]:
    """What a finding about a layer hands on."""
    numbers: dict[str, Any] = {
        "eigenvalues": layer.count,
        "largest_eigenvalue": layer.largest,
        "stable_rank": layer.stable_rank,
    }
    if layer.noise:
        numbers |= {"noise_ks": layer.noise.ks, "noise_edge": layer.noise.edge}
    if fit := layer.power_law:
        numbers |= {"alpha": fit.alpha, "sigma": fit.sigma, "distance": fit.distance, "tail": fit.tail}
    if layer.alpha_range:
        numbers |= {"alpha_low": layer.alpha_range[0], "alpha_high": layer.alpha_range[1]}
    return numbers


def listed(layers: list[LayerSpectrum], most: int = 5) -> str:
    """How many layers, and the first of them by name."""
    count = f"{len(layers)} layer{'s' if len(layers) != 1 else ''}"
    shown = ", ".join(f"`{layer.parameter}`{part_of(layer)}" for layer in layers[:most])
    return f"{count}: {shown}" + (f" and {len(layers) - most} more" if len(layers) > most else "")


def reasons(spectra: LayerSpectra) -> str:
    """Why layers were not judged, with counts."""
    counts = Counter(one.reason.partition(" `")[0] for one in spectra.skipped)
    for layer in spectra.layers:
        if not layer.finite:
            counts["not finite, see `finite-weights`"] += 1
        elif layer.unjudged:
            counts[layer.unjudged] += 1
        elif layer.measured and not layer.judged and not layer.collapsed:
            counts["fewer than 50 eigenvalues"] += 1
    return ", ".join(f"{count} ({reason})" for reason, count in counts.most_common())


def nothing_judged(spectra: LayerSpectra) -> str:
    """Why no layer at all was judged."""
    if spectra.matrices and not spectra.analysed:
        return "the time was up before the first matrix; raise `layer-spectra.seconds` or the budget"
    if spectra.skipped or spectra.layers:
        return (
            f"no weight matrix is large enough for a verdict (50 eigenvalues); left out: {reasons(spectra)}"
        )
    return "the model has no weight matrix"
