"""Which parameter matrices still look like a random initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from debugkit import spectrum
from debugkit.evidence import Cost
from debugkit.probes.layer_spectra import LayerSpectra, LayerSpectrum, is_table, unreadable
from debugkit.target import Target

State = Literal["initial", "trained", "undetermined"]
Origin = Literal["random", "deterministic", "structured", "undetermined"]

SURE_SIDE = 128
FEWEST_TRAINED = 4
CLEAR_MAJORITY = 0.75

_SAMPLED_ROWS = 8192
_FEWEST_VALUES = 64
_FEWEST_ROWS = 32
_FEWEST_COLUMNS = 8
_KURTOSES = (3.0, 1.8, 2.367)  # normal, uniform, normal cut off at two standard deviations


@dataclass(frozen=True)
class InitialState:
    """The state of each weight matrix, read from its values alone.

    Attributes:
        states: by parameter and part of it, for every layer whose spectrum can be judged.
        tables: where the values of each embedding table come from, by the module's name.
    """

    cost: ClassVar[Cost] = "static"
    states: Mapping[tuple[str, str], State] = field(repr=False)
    tables: Mapping[str, Origin] = field(repr=False)

    @staticmethod
    def collect(target: Target, spectra: LayerSpectra) -> InitialState:
        """Judge every spectrum and every embedding table."""
        states = {(layer.parameter, layer.part): state_of(layer) for layer in spectra.judged}
        tables = {
            name: origin_of(weight.detach())
            for name, module in target.model.named_modules()
            if is_table(module)
            and (weight := module._parameters.get("weight")) is not None
            and unreadable(weight) is None
        }
        return InitialState(states, tables)

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


@torch.no_grad()
def origin_of(table: torch.Tensor) -> Origin:
    """Where the rows of an embedding table come from.

    ``random``: every row, column and moment is that of independent normal or uniform values, and so is the
    spectrum. ``deterministic``: a function of the row's number (sinusoids, one-hot rows) or a code of few
    distinct values. ``structured``: neither, as trained tables are.

    Args:
        table: ``[rows, width]``; rows of zeros (padding) are left out, of very long tables a part is read.
    """
    rows = table[:: max(1, len(table) // _SAMPLED_ROWS)]
    rows = rows[(rows != 0).any(1)].to(torch.float64).cpu()
    if not bool(torch.isfinite(rows).all()) or rows.numel() < _FEWEST_VALUES or min(rows.shape) < 2:
        return "undetermined"
    if _is_code(rows) or _is_function_of_position(table):
        return "deterministic"
    if len(rows) < _FEWEST_ROWS or rows.shape[1] < _FEWEST_COLUMNS:
        return "undetermined"
    return "random" if _is_random(rows) else "structured"


def _is_code(rows: torch.Tensor) -> bool:
    return len(set(rows[:64].flatten().tolist())) <= 16


def _is_function_of_position(table: torch.Tensor) -> bool:
    """Whether the product of two rows depends on their distance alone, as it does for sinusoids."""
    first = int((table[:8] == 0).all(1).sum())
    rows = table[first : first + 64].to(torch.float64)
    if len(rows) < 4:
        return False
    gram = rows @ rows.T
    off = max(
        float((diagonal - diagonal.mean()).abs().max())
        for diagonal in map(gram.diagonal, range(len(rows) - 1))
    )
    return off <= max(1e-3, 8 * torch.finfo(table.dtype).eps) * float(gram.abs().max())


def _is_random(rows: torch.Tensor) -> bool:
    """Five moments and the spectrum, each within about six standard errors of independent values."""
    count, width = rows.shape
    energy = rows.square()
    variance = float(energy.mean())
    kurtosis = float(energy.square().mean()) / variance**2
    likely = min(_KURTOSES, key=lambda value: abs(value - kurtosis))
    if abs(kurtosis - likely) > 6 * (24 / rows.numel()) ** 0.5:
        return False
    if float(rows.mean(0).abs().max()) > 6 * (variance / count) ** 0.5:
        return False
    by_column = energy.mean(0) / variance - 1
    if float(by_column.abs().max()) > 6 * ((likely - 1) / count) ** 0.5:
        return False
    by_row = energy.mean(1) / variance - 1
    expected = (likely - 1) / width
    if abs(float(by_row.square().mean()) / expected - 1) > 6 * ((2 + 12 / width) / count) ** 0.5:
        return False
    short, long = sorted(rows.shape)
    return spectrum.noise_distance(spectrum.gram_eigenvalues(rows), short, long).is_noise
