"""The eigenvalue spectra of a model's weight matrices."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.conv import _ConvNd

from debugkit.evidence import Cost, Deadline
from debugkit.target import Target
from debugkit.weights import spectrum
from debugkit.weights.spectrum import NoiseDistance, PowerLaw

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FEWEST_EIGENVALUES = 50
SHORTEST_SIDE = 32
_SAMPLED_VALUES = 2**20
_LAZY = "not initialised yet"
_GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}


@dataclass(frozen=True)
class LayerSpectrum:
    """The spectrum of one weight matrix, or of the slices of one convolution, pooled.

    Attributes:
        parameter: dotted name of the parameter.
        part: which part of a fused parameter, such as ``forget gate`` or ``expert 3``; empty for a whole one.
        kind: ``linear``, ``conv``, ``attention``, ``recurrent``, ``experts`` or ``other``.
        shape: shape of the parameter.
        short: short side M of one matrix.
        long: long side N.
        trainable: whether the parameter requires a gradient.
        finite: whether no value is NaN or infinite; nothing below is measured otherwise.
        zero: whether every value is 0; nothing below is measured then.
        count: number of eigenvalues.
        usable: how many of them rounding leaves.
        collapsed: whether rounding leaves under half of them, in every slice.
        orthogonal: whether the eigenvalues are all the same, as orthogonal and identity matrices have them.
        uniform: whether the values are those of a uniform distribution with a sharp edge, the default
            initialisation of torch's layers.
        noise: distance from the spectrum of independent values.
        power_law: the fit of the tail.
        alpha_range: smallest and largest alpha when the 0 to 5 largest eigenvalues are left out.
        largest: the largest eigenvalue of WᵀW; convolutions count half, as WeightWatcher has it.
        stable_rank: sum of the eigenvalues over the largest.
        entropy: entropy of the eigenvalues over that of a flat spectrum.
        log_alpha_norm: log10 of the sum of eigenvalues to the power of alpha.
    """

    parameter: str
    part: str
    kind: str
    shape: tuple[int, ...]
    short: int
    long: int
    trainable: bool
    finite: bool = True
    zero: bool = False
    count: int = 0
    usable: int = 0
    collapsed: bool = False
    orthogonal: bool = False
    uniform: bool = False
    noise: NoiseDistance | None = None
    power_law: PowerLaw | None = None
    alpha_range: tuple[float, float] | None = None
    largest: float = 0.0
    stable_rank: float = 0.0
    entropy: float = 0.0
    log_alpha_norm: float = 0.0

    @property
    def measured(self) -> bool:
        """Whether there is a spectrum at all."""
        return self.finite and not self.zero

    @property
    def judged(self) -> bool:
        """Whether there are enough eigenvalues for a verdict on their distribution."""
        return self.measured and not self.collapsed and self.usable >= FEWEST_EIGENVALUES

    @property
    def role(self) -> tuple[str, str, tuple[int, ...]]:
        """What layers of the same place in different blocks share: name without numbers, part, shape."""
        return re.sub(r"\d+", "#", self.parameter), re.sub(r"\d+", "#", self.part), self.shape


@dataclass(frozen=True)
class SkippedMatrix:
    """A parameter with two or more dimensions that has no spectrum, and why."""

    parameter: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class LayerSpectra:
    """The spectra of all weight matrices, or of as many as the time allowed.

    Attributes:
        layers: in the model's order.
        skipped: what was left out on purpose.
        matrices: how many parameters could have been analysed.
        analysed: how many were.
    """

    cost: ClassVar[Cost] = "static"
    layers: tuple[LayerSpectrum, ...] = field(repr=False)
    skipped: tuple[SkippedMatrix, ...] = field(repr=False)
    matrices: int
    analysed: int

    @staticmethod
    def collect(
        target: Target,
        deadline: Deadline,
        *,
        seconds: Annotated[
            float,
            Field(gt=0, description="no further matrix is begun after this time; depths stay evenly covered"),
        ] = 60.0,
        max_side: Annotated[
            int,
            Field(
                ge=64, description="matrices whose short side is longer are left out (its cube is the cost)"
            ),
        ] = 8192,
        max_eigenvalues: Annotated[
            int, Field(ge=64, description="convolutions with more pooled eigenvalues are left out")
        ] = 15_000,
    ) -> LayerSpectra:
        """Analyse one parameter at a time; never raises for what a parameter holds."""
        end = time.monotonic() + min(seconds, deadline.seconds_left)
        found, skipped = _find(target.model)
        wanted = []
        for one in found:
            if reason := _too_large(one, max_side, max_eigenvalues):
                skipped.append(SkippedMatrix(one.name, tuple(one.tensor.shape), reason))
            else:
                wanted.append(one)
        spectra: dict[int, list[LayerSpectrum]] = {}
        for index in _evenly(len(wanted)):
            if time.monotonic() > end:
                break
            with spectrum.few_threads(min(wanted[index].parts[0][1].shape[-2:])):
                spectra[index] = list(_analyse(wanted[index]))
        layers = tuple(layer for index in sorted(spectra) for layer in spectra[index])
        return LayerSpectra(layers, tuple(skipped), len(wanted), len(spectra))

    @property
    def judged(self) -> list[LayerSpectrum]:
        """The layers with enough eigenvalues for a verdict."""
        return [layer for layer in self.layers if layer.judged]


@dataclass(frozen=True)
class _Matrix:
    """A parameter, cut into the matrices that it stands for: label and ``[slices, a, b]`` each."""

    name: str
    tensor: torch.Tensor
    kind: str
    parts: tuple[tuple[str, torch.Tensor], ...]


def is_table(module: nn.Module) -> bool:
    """Whether a module looks rows up by index."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of parameters that belong to a layer's adapter: beside what it keeps as ``base_layer``."""
    wrappers = [module for module in model.modules() if "base_layer" in dict(module.named_children())]
    return {
        id(parameter)
        for wrapper in wrappers
        for name, parameter in wrapper.named_parameters()
        if not name.startswith("base_layer.")
    }


def _find(model: nn.Module) -> tuple[list[_Matrix], list[SkippedMatrix]]:
    tables = {
        id(dict(module.named_parameters(recurse=False)).get("weight"))
        for module in model.modules()
        if is_table(module)
    }
    adapters = adapter_parameters(model)
    found: list[_Matrix] = []
    skipped: list[SkippedMatrix] = []
    seen: dict[int, str] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            cut: str | tuple[str, list[tuple[str, torch.Tensor]]]
            if id(parameter) in seen:
                cut = f"tied to `{seen[id(parameter)]}`"
            elif (reason := unreadable(parameter)) is not None:
                cut = reason
            elif id(parameter) in tables:
                cut = "embedding table"
            elif id(parameter) in adapters:
                cut = "adapter"
            else:
                cut = _cut(module, attribute, parameter.detach())
            seen.setdefault(id(parameter), name)
            if isinstance(cut, str):
                if parameter.ndim >= 2 or cut == _LAZY:
                    skipped.append(SkippedMatrix(name, _shape(parameter), cut))
                continue
            kind, parts = cut
            if min(parts[0][1].shape[-2:]) < SHORTEST_SIDE:
                skipped.append(SkippedMatrix(name, _shape(parameter), f"a side under {SHORTEST_SIDE}"))
            else:
                found.append(_Matrix(name, parameter, kind, tuple(parts)))
    return found, skipped


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    try:
        return tuple(parameter.shape)
    except RuntimeError:
        return ()


def unreadable(parameter: torch.Tensor) -> str | None:
    """Why the values of a parameter can't be read as a matrix; ``None`` where they can."""
    if torch.nn.parameter.is_lazy(parameter):
        return _LAZY
    if parameter.is_meta:
        return "on the meta device"
    if type(parameter.data) is not torch.Tensor and type(parameter.data) is not nn.Parameter:
        return f"packed as `{type(parameter.data).__name__}`"
    if parameter.dtype not in FLOATS:
        return f"quantised or packed ({str(parameter.dtype).removeprefix('torch.')})"
    if parameter.layout is not torch.strided:
        return "sparse"
    if parameter.ndim < 2:
        return "a vector"
    if not parameter.numel():
        return "empty"
    return "dequantised from 4 bits" if _is_dequantised(parameter.detach()) else None


def _is_dequantised(weight: torch.Tensor, block: int = 32, levels: int = 16) -> bool:
    """Whether blocks of values along the last dimension take few levels each, as they do after GGUF's Q4 or NF4."""
    if weight.shape[-1] < block:
        return False
    rows = weight.reshape(-1, weight.shape[-1])[:64, :block].float().sort(1).values
    distinct = 1 + (rows.diff(dim=1) != 0).sum(1)
    return (
        bool((distinct <= levels).all())
        and int(distinct.median()) >= 5
        and bool((rows != 0).float().mean() > 0.5)
    )


def _cut(
    module: nn.Module, attribute: str, weight: torch.Tensor
) -> str | tuple[str, list[tuple[str, torch.Tensor]]]:
    """The kind of a parameter and its parts, or the reason why it has none."""
    rows = weight.shape[0]
    if isinstance(module, _ConvNd) and attribute.startswith("weight"):
        return _cut_conv(module, weight)
    if isinstance(module, nn.MultiheadAttention) and weight.ndim == 2:
        if attribute == "in_proj_weight":
            return "attention", _split(weight, ("query", "key", "value"))
        return "attention", [("", weight[None])]
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and weight.ndim == 2:
        gates = max(1, rows // module.hidden_size) if rows % module.hidden_size == 0 else 1
        kind = type(module).__name__.removesuffix("Cell") if gates > 1 else ""
        names = _GATES.get(str(getattr(module, "mode", kind)), tuple(map(str, range(gates))))
        whole = gates == 1 or len(names) != gates or "hr" in attribute
        return "recurrent", [("", weight[None])] if whole else _split(weight, [f"{n} gate" for n in names])
    if isinstance(module, nn.Linear):
        if attribute.startswith("weight") and weight.ndim == 2:
            return "linear", _thirds(weight)
        return "not the weight of its layer"
    if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._NormBase)) or bool(
        (weight == weight.flatten()[0]).all()
    ):
        return "constant, or the scale of a normalisation"
    if weight.ndim == 2 and (side := _output_side(module, weight)) is not None:
        return "linear", _thirds(weight if side == 0 else weight.T)
    if weight.ndim == 3 and rows > 1:
        return "experts", [(f"expert {index}", weight[index][None]) for index in range(rows)]
    return "a table, or a matrix of unknown use"


def _cut_conv(module: _ConvNd, weight: torch.Tensor) -> str | tuple[str, list[tuple[str, torch.Tensor]]]:
    groups = module.groups
    if groups > 1 and 1 in (weight.shape[1], weight.shape[0] // groups):
        return "depthwise"
    if weight.ndim < 3:
        return "a table, or a matrix of unknown use"
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    slices = grouped.permute(0, 3, 1, 2).reshape(-1, *grouped.shape[1:3])
    return "conv", [("", slices)]


def _split(weight: torch.Tensor, names: tuple[str, ...] | list[str]) -> list[tuple[str, torch.Tensor]]:
    return [(name, part[None]) for name, part in zip(names, weight.chunk(len(names)), strict=True)]


def _thirds(weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A fused query-key-value matrix as its thirds, where the shape is that of one."""
    if weight.shape[0] == 3 * weight.shape[1]:
        return _split(weight, ("first third", "second third", "last third"))
    return [("", weight[None])]


def _output_side(module: nn.Module, weight: torch.Tensor) -> int | None:
    """The dimension of a matrix that a bias of the same module fits."""
    vectors = [p.shape[0] for p in module._parameters.values() if p is not None and p.ndim == 1]
    return next((side for side in (1, 0) if weight.shape[side] in vectors), None)


def _too_large(one: _Matrix, max_side: int, max_eigenvalues: int) -> str | None:
    slices, *sides = one.parts[0][1].shape
    if min(sides) > max_side:
        return f"its short side {min(sides):,} is over `max-side` {max_side:,}"
    if slices * min(sides) > max(max_eigenvalues, max_side):
        return f"{slices * min(sides):,} eigenvalues are over `max-eigenvalues` {max_eigenvalues:,}"
    return None


def _evenly(count: int) -> list[int]:
    """The indices in an order that covers the range evenly however early it ends."""
    return sorted(range(count), key=lambda index: (index * 0.6180339887498949) % 1)


def _analyse(one: _Matrix) -> Iterator[LayerSpectrum]:
    orthogonal = len(one.parts) > 1 and one.kind != "experts" and _is_orthogonal(one.tensor.detach())
    for label, matrices in one.parts:
        yield _spectrum(one, label, matrices, orthogonal)


@torch.no_grad()
def _spectrum(one: _Matrix, label: str, matrices: torch.Tensor, orthogonal: bool) -> LayerSpectrum:
    short, long = sorted(matrices.shape[-2:])
    facts = {
        "parameter": one.name,
        "part": label,
        "kind": one.kind,
        "shape": tuple(one.tensor.shape),
        "short": short,
        "long": long,
        "trainable": one.tensor.requires_grad,
    }
    if matrices.device.type not in ("cpu", "cuda"):
        matrices = matrices.cpu()
    largest = float(matrices.abs().amax())
    if largest == 0.0 or not largest < float("inf"):
        return LayerSpectrum(**facts, finite=largest == 0.0, zero=largest == 0.0)  # type: ignore[arg-type]
    each = spectrum.gram_eigenvalues(matrices).cpu()
    if one.kind == "conv":
        each /= 2
    floors = [
        spectrum.rounding_floor(values, long, matrices.dtype) if values[-1] > 0 else 0.0 for values in each
    ]
    ranks = [int((values > floor).sum()) for values, floor in zip(each, floors, strict=True)]
    pooled = each.flatten().sort().values
    usable = pooled[pooled > max(floors)]
    fit = spectrum.fit_power_law(usable)
    return LayerSpectrum(
        **facts,  # type: ignore[arg-type]
        count=len(pooled),
        usable=len(usable),
        collapsed=2 * max(ranks) < short,
        orthogonal=orthogonal or bool((each[:, -1] < 1.1 * each[:, 0]).all()),
        uniform=_is_uniform(matrices, largest),
        noise=spectrum.noise_distance(pooled, short, long),
        power_law=fit,
        alpha_range=spectrum.alpha_range(usable),
        largest=float(pooled[-1]),
        stable_rank=spectrum.stable_rank(pooled),
        entropy=spectrum.matrix_entropy(usable),
        log_alpha_norm=spectrum.log_alpha_norm(usable, fit.alpha) if fit else 0.0,
    )


@torch.no_grad()
def _is_orthogonal(weight: torch.Tensor) -> bool:
    """Whether the columns of a tall matrix (before it is split) are orthonormal up to a factor."""
    values = spectrum.gram_eigenvalues(weight) if bool(torch.isfinite(weight).all()) else torch.zeros(1)
    return bool(values[-1] > 0 and values[-1] < 1.1 * values[0])


def _is_uniform(values: torch.Tensor, largest: float) -> bool:
    """Kurtosis 1.8 and a largest value at the very edge: within four standard errors of each."""
    flat = values.flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)].to(torch.float64)
    square = float(sample.square().mean())
    kurtosis = float(sample.pow(4).mean()) / square**2
    tolerance = max(0.02, 2.0 / len(sample) ** 0.5)
    edge = spectrum.uniform_edge(largest, square**0.5)
    return bool(abs(kurtosis - 1.8) < 1.8 * tolerance and abs(edge - 1) < tolerance)
