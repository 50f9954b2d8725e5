"""Which parameter matrices still look like a random initialisation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from debugkit.evidence import Cost
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.weights.layer_spectrum import LayerSpectrum

State = Literal["initial", "trained", "undetermined"]

SURE_SIDE = 128
FEWEST_TRAINED = 4
CLEAR_MAJORITY = 0.75
FAR = 15.0


@dataclass(frozen=True)
class InitialState:
    """The state of each weight matrix, read from its values alone.

    Attributes:
        states: by parameter and part of it, for every layer whose spectrum can be judged.
        distance: median Kolmogorov-Smirnov distance (times the short side) of the trained layers from noise. It
            grows all through a training.
    """

    cost: ClassVar[Cost] = "static"
    states: Mapping[tuple[str, str], State] = field(repr=False)
    distance: float

    @staticmethod
    def collect(spectra: LayerSpectra) -> InitialState:
        """Judge every spectrum."""
        states = {(layer.parameter, layer.part): state_of(layer) for layer in spectra.judged}
        distances = [
            layer.noise.ks
            for layer in spectra.judged
            if layer.noise and states[layer.parameter, layer.part] == "trained"
        ]
        return InitialState(states, statistics.median(distances) if distances else 0.0)

    def state(self, layer: LayerSpectrum) -> State:
        """The state of one layer; ``undetermined`` where it was not judged."""
        return self.states.get((layer.parameter, layer.part), "undetermined")

    def count(self, state: State) -> int:
        """How many layers are in a state."""
        return sum(found == state for found in self.states.values())

    @property
    def determined(self) -> int:
        """How many layers are known to be initial or trained."""
        return len(self.states) - self.count("undetermined")

    @property
    def initial_share(self) -> float:
        """Share of the determined layers that look like their initialisation."""
        return self.count("initial") / self.determined if self.determined else 0.0

    @property
    def fresh(self) -> bool:
        """Whether most of the determined layers look like their initialisation."""
        return self.determined > 0 and self.initial_share > 0.5

    @property
    def trained(self) -> bool:
        """Whether a clear majority of the determined layers, at least four, have left their initialisation far behind.

        In the first hundreds of steps the layers leave it one by one, and the median distance is under 10 (a small
        GPT after 300 steps: 8.8); in seven published models it is 18 to 63.
        """
        return (
            self.count("trained") >= FEWEST_TRAINED
            and self.initial_share <= 1 - CLEAR_MAJORITY
            and self.distance >= FAR
        )


def state_of(layer: LayerSpectrum) -> State:
    """``initial`` needs the noise law on a matrix large enough for it, or also the sharp uniform values."""
    if layer.orthogonal:
        return "initial"
    if layer.noise is None or not layer.judged:
        return "undetermined"
    if not layer.noise.is_noise:
        return "trained"
    return "initial" if layer.short >= SURE_SIDE or layer.uniform else "undetermined"
