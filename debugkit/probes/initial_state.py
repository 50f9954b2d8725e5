"""Which parameter matrices still look like a random initialisation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.target import Target
from debugkit.weights.eigenvalues import gram_eigenvalues
from debugkit.weights.layer_spectrum import LayerSpectrum
from debugkit.weights.marchenko_pastur import noise_distance
from debugkit.weights.model_matrices import is_table, unreadable
from debugkit.weights.spectrum import uniform_edge

State = Literal["initial", "trained", "undetermined"]
Origin = Literal["random", "like an initialiser", "deterministic", "structured", "undetermined"]

SURE_SIDE = 128
FEWEST_TRAINED = 4
CLEAR_MAJORITY = 0.75
FAR = 15.0

_SAMPLED_ROWS = 4096
_SAMPLED_COLUMNS = 512
_FEWEST_ROWS = 32
_FEWEST_COLUMNS = 8
_FEWEST_POOLED = 32
_FEWEST_UNIFORM = 256
_USUAL_STDS = (1.0, 0.02)  # torch's embeddings, transformers' embeddings
_SIGMAS = 3.0
_KURTOSES = (3.0, 1.8, 2.367)  # normal, uniform, normal cut off at two standard deviations


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


@dataclass(frozen=True)
class FrozenTables:
    """The embedding tables that are frozen, where there are any.

    Attributes:
        origins: where the values of each come from, by the module's name.
    """

    cost: ClassVar[Cost] = "static"
    origins: Mapping[str, Origin]

    @staticmethod
    def collect(target: Target) -> FrozenTables:
        """Judge the values of each frozen table.

        Raises:
            Unavailable: no embedding table is frozen.
        """
        origins = {
            name: origin_of(weight.detach())
            for name, module in target.model.named_modules()
            if is_table(module)
            and (weight := module._parameters.get("weight")) is not None
            and not weight.requires_grad
            and unreadable(weight) is None
        }
        if not origins:
            raise Unavailable("no embedding table is frozen")
        return FrozenTables(origins)


@dataclass(frozen=True)
class FrozenState:
    """The state of a model that has frozen tables; others are spared the spectra.

    Attributes:
        tables: the frozen tables.
        layers: the state of the weight matrices around them.
    """

    cost: ClassVar[Cost] = "static"
    tables: FrozenTables
    layers: InitialState

    @staticmethod
    def collect(tables: FrozenTables, layers: InitialState) -> FrozenState:
        """Only where a table is frozen: needs are collected in order."""
        return FrozenState(tables, layers)


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
    spectrum. ``like an initialiser``: the same of a table that is too small for all but the moments of all values,
    which also have the spread of a usual initialiser; a trained table can be like that. ``deterministic``: a function of the row's number (sinusoids, one-hot rows) or a code of few
    distinct values. ``structured``: neither, as trained tables are.

    Args:
        table: ``[rows, width]``; rows of zeros (padding) are left out, of large tables a part is read.
    """
    rows = table[:: max(1, len(table) // _SAMPLED_ROWS), :_SAMPLED_COLUMNS]
    rows = rows[(rows != 0).any(1)].to(torch.float64).cpu()
    if not bool(torch.isfinite(rows).all()) or rows.numel() < _FEWEST_POOLED or min(rows.shape) < 2:
        return "undetermined"
    if _is_code(rows) or _is_function_of_position(table):
        return "deterministic"
    if len(rows) < _FEWEST_ROWS or rows.shape[1] < _FEWEST_COLUMNS:
        return "like an initialiser" if _is_like_an_initialiser(rows) else "undetermined"
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


def _is_like_an_initialiser(rows: torch.Tensor) -> bool:
    """Whether all values pooled, and the energies of rows and columns, are within three standard errors of one.

    Of a usual spread: N(0, 1), N(0, 0.02), or, with values enough to see its sharp edge, a uniform distribution.
    """
    count = rows.numel()
    energy = rows.square()
    std = float(energy.mean()) ** 0.5
    if std == 0 or abs(float(rows.mean())) > _SIGMAS * std / count**0.5:
        return False
    kurtosis = float(energy.square().mean()) / std**4
    uniform = (
        (count >= _FEWEST_UNIFORM)
        and _is_near(kurtosis, 1.8, (0.73 / count) ** 0.5)
        and (abs(uniform_edge(float(rows.abs().max()), std) - 1) < 2 * count**-0.5)
    )
    normal = _is_near(kurtosis, 3.0, (24 / count) ** 0.5) and any(
        _is_near(std / usual, 1.0, (2 * count) ** -0.5) for usual in _USUAL_STDS
    )
    if not uniform and not normal:
        return False
    excess = (1.8 if uniform else 3.0) - 1
    for dim in (0, 1):
        shares = energy.mean(dim) / std**2 - 1
        expected = excess / rows.shape[dim]
        if float(shares.square().mean()) > expected * (1 + _SIGMAS * (2 / len(shares)) ** 0.5) * 1.5:
            return False
    largest = float(torch.linalg.matrix_norm(rows, 2))
    short, long = sorted(rows.shape)
    return bool(largest < std * (short**0.5 + long**0.5 + _SIGMAS))


def _is_near(value: float, expected: float, error: float) -> bool:
    return abs(value - expected) <= _SIGMAS * error


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
    return noise_distance(gram_eigenvalues(rows.numpy()), short, long).is_noise
