"""Which parameter matrices still look like a random initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from debugkit.evidence import Cost
from debugkit.probes.layer_spectra import LayerSpectra, LayerSpectrum
from debugkit.target import Target

State = Literal["initial", "trained", "undetermined"]

SURE_SIDE = 128
FEWEST_TRAINED = 4
CLEAR_MAJORITY = 0.75


@dataclass(frozen=True)
class InitialState:
    """The state of each weight matrix, read from its values alone.

    Attributes:
        states: by parameter and part of it, for every layer whose spectrum can be judged.
    """

    cost: ClassVar[Cost] = "static"
    states: Mapping[tuple[str, str], State] = field(repr=False)

    @staticmethod
    def collect(target: Target, spectra: LayerSpectra) -> InitialState:
        """Judge every spectrum."""
        return InitialState({(layer.parameter, layer.part): state_of(layer) for layer in spectra.judged})

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
        """Whether a clear majority of the determined layers, and at least four, are trained."""
        return self.count("trained") >= FEWEST_TRAINED and self.initial_share <= 1 - CLEAR_MAJORITY


def state_of(layer: LayerSpectrum) -> State:
    """``initial`` needs the noise law on a matrix large enough for it, or also the sharp uniform values."""
    if layer.orthogonal:
        return "initial"
    if layer.noise is None or not layer.judged:
        return "undetermined"
    if not layer.noise.is_noise:
        return "trained"
    return "initial" if layer.short >= SURE_SIDE or layer.uniform else "undetermined"
