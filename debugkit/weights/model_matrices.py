"""The weight matrices of a live model: which parameters they are, and how each is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from debugkit.weights.layer_spectrum import SHORTEST_SIDE
from debugkit.weights.matrix import Array, Kind, Matrix, SkippedMatrix, equal_parts
from debugkit.weights.readings import has_few_levels

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LAZY = "not initialised yet"
_UNKNOWN = "a table, or a matrix of unknown use"
_GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}
_THIRDS = ("first third", "second third", "last third")

Cut = tuple[Kind, int, tuple[tuple[str, int], ...]]


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


def model_matrices(model: nn.Module) -> tuple[list[Matrix], list[SkippedMatrix]]:
    """The weight matrices of a model in its order, and what is left out, with the reason; nothing is raised."""
    tables = {
        id(dict(module.named_parameters(recurse=False)).get("weight"))
        for module in model.modules()
        if is_table(module)
    }
    adapters = adapter_parameters(model)
    found: list[Matrix] = []
    skipped: list[SkippedMatrix] = []
    seen: dict[int, str] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            described: str | Matrix
            if id(parameter) in seen:
                described = f"tied to `{seen[id(parameter)]}`"
            elif (reason := unreadable(parameter)) is not None:
                described = reason
            elif id(parameter) in tables:
                described = "embedding table"
            elif id(parameter) in adapters:
                described = "adapter"
            else:
                described = _described(name, module, attribute, parameter)
            seen.setdefault(id(parameter), name)
            if isinstance(described, str):
                if parameter.ndim >= 2 or described == _LAZY:
                    skipped.append(SkippedMatrix(name, _shape(parameter), described))
            elif min(described.sides[0][2:]) < SHORTEST_SIDE:
                skipped.append(SkippedMatrix(name, _shape(parameter), f"a side under {SHORTEST_SIDE}"))
            else:
                found.append(described)
    return found, skipped


def _described(name: str, module: nn.Module, attribute: str, parameter: nn.Parameter) -> str | Matrix:
    cut = _cut(module, attribute, parameter.detach())
    if isinstance(cut, str):
        return cut
    kind, axis, parts = cut
    transposed = kind == "linear" and parameter.ndim == 2 and _output_side(module, parameter) == 1
    return Matrix(
        name,
        kind,
        tuple(parameter.shape),
        str(parameter.dtype).removeprefix("torch."),
        lambda: values_of(parameter),
        parts,
        axis,
        outputs=int(transposed and not isinstance(module, nn.Linear)),
        groups=module.groups if isinstance(module, _ConvNd) else 1,
        trainable=parameter.requires_grad,
    )


def values_of(parameter: torch.Tensor) -> Array:
    """The values of a dense tensor, in place where it is on the CPU; bfloat16 as its bits."""
    values = parameter.detach().cpu()
    if values.dtype is torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return np.asarray(values)


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


def _is_dequantised(weight: torch.Tensor) -> bool:
    return has_few_levels(weight.reshape(-1, weight.shape[-1])[:64, :32].float().cpu().numpy())


def _cut(module: nn.Module, attribute: str, weight: torch.Tensor) -> str | Cut:
    """The kind of a parameter, and its parts along an axis, or the reason why it is left out."""
    rows = weight.shape[0]
    if isinstance(module, _ConvNd) and attribute.startswith("weight"):
        if module.groups > 1 and 1 in (weight.shape[1], rows // module.groups):
            return "depthwise"
        return _UNKNOWN if weight.ndim < 3 else ("conv", 0, ())
    if isinstance(module, nn.MultiheadAttention) and weight.ndim == 2:
        fused = attribute == "in_proj_weight"
        return "attention", 0, equal_parts(("query", "key", "value"), rows) if fused else ()
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and weight.ndim == 2:
        gates = max(1, rows // module.hidden_size) if rows % module.hidden_size == 0 else 1
        kind = type(module).__name__.removesuffix("Cell") if gates > 1 else ""
        names = _GATES.get(str(getattr(module, "mode", kind)), tuple(map(str, range(gates))))
        whole = gates == 1 or len(names) != gates or "hr" in attribute
        return "recurrent", 0, () if whole else equal_parts([f"{name} gate" for name in names], rows)
    if isinstance(module, nn.Linear):
        if attribute.startswith("weight") and weight.ndim == 2:
            return "linear", 0, _thirds(weight.shape)
        return "not the weight of its layer"
    if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._NormBase)) or bool(
        (weight == weight.flatten()[0]).all()
    ):
        return "constant, or the scale of a normalisation"
    if weight.ndim == 2 and (side := _output_side(module, weight)) is not None:
        return "linear", side, _thirds((weight.shape[side], weight.shape[1 - side]))
    if weight.ndim == 3 and rows > 1:
        return "experts", 0, tuple((f"expert {index}", 1) for index in range(rows))
    return _UNKNOWN


def _thirds(shape: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """A fused query-key-value matrix as its thirds, where the shape is that of one."""
    return equal_parts(_THIRDS, shape[0]) if shape[0] == 3 * shape[1] else ()


def _output_side(module: nn.Module, weight: torch.Tensor) -> int | None:
    """The dimension of a matrix that a bias of the same module fits."""
    vectors = [p.shape[0] for p in module._parameters.values() if p is not None and p.ndim == 1]
    return next((side for side in (1, 0) if weight.shape[side] in vectors), None)
