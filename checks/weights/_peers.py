"""Layers of the same place in other blocks."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable

from debugkit.probes.initial_state import CLEAR_MAJORITY, InitialState
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.weights.layer_spectrum import LayerSpectrum

_FEWEST_PEERS = 3
_OUTLIER_PEERS = 6
_OUTLIER_SCORE = 3.5


def trained_peers(layer: LayerSpectrum, state: InitialState, spectra: LayerSpectra) -> str | None:
    """``7 of 8`` when most layers of the same place in other blocks, one of them later, are trained."""
    same_role = [
        other for other in spectra.layers if other.role == layer.role and (other.judged or other is layer)
    ]
    position = next(index for index, other in enumerate(same_role) if other is layer)
    peers = [state.state(other) for other in same_role if other is not layer]
    later = [state.state(other) for other in same_role[position + 1 :]]
    trained = peers.count("trained")
    if trained >= max(_FEWEST_PEERS, CLEAR_MAJORITY * len(peers)) and "trained" in later:
        return f"{trained} of {len(peers)}"
    return None


def odd_ones(judged: Iterable[LayerSpectrum]) -> list[LayerSpectrum]:
    """Layers whose log alpha is far from that of at least six peers, by the robust score of Iglewicz and Hoaglin."""
    roles = defaultdict(list)
    for layer in judged:
        if layer.power_law:
            roles[layer.role].append((layer, math.log(layer.power_law.alpha)))
    found = []
    for peers in roles.values():
        if len(peers) > _OUTLIER_PEERS:
            middle = statistics.median(value for _, value in peers)
            spread = statistics.median(abs(value - middle) for _, value in peers)
            found += [
                layer for layer, value in peers if 0.6745 * abs(value - middle) > _OUTLIER_SCORE * spread > 0
            ]
    return found
