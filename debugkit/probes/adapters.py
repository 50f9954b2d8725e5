"""Adapters: small trainable matrices beside the layers of a model that stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.target import Target

_MOST_MATRICES = 12
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer with an adapter.

    Attributes:
        name: dotted name of the module that holds both.
        base: names of the layer's own weights, without biases.
        adapter: names of the adapter's parameters.
        rank: the side that the two factors of its product share; ``None`` where it is made otherwise.
        short: the short side of the layer's weight; ``None`` where it is not a plain matrix.
        stuck: whether both factors of its product are zero, so that neither gets a gradient.
    """

    name: str
    base: tuple[str, ...]
    adapter: tuple[str, ...]
    rank: int | None
    short: int | None
    stuck: bool


@dataclass(frozen=True)
class Adapters:
    """The layers with adapters, found by their structure.

    A layer that keeps the original as ``base_layer``, as peft's do; or a module that holds a frozen weight
    ``[out, in]`` (or one beside a single factor of zeros) and two factors ``[rank, in]`` and ``[out, rank]`` of lower rank.
    """

    cost: ClassVar[Cost] = "static"
    layers: tuple[AdaptedLayer, ...]

    @staticmethod
    def collect(target: Target) -> Adapters:
        """Look at every module.

        Raises:
            Unavailable: no layer has an adapter.
        """
        layers = _layers(target.model)
        if not layers:
            raise Unavailable("the model has no adapters")
        return Adapters(tuple(layers))

    @property
    def base(self) -> frozenset[str]:
        """Names of the weights beside which there is an adapter."""
        return frozenset(name for layer in self.layers for name in layer.base)

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the adapters' parameters."""
        return frozenset(name for layer in self.layers for name in layer.adapter)


def _layers(model: nn.Module) -> list[AdaptedLayer]:
    modules = list(model.named_modules())
    order = {path: index for index, (path, _) in enumerate(modules)}
    found: dict[str, AdaptedLayer] = {}
    for path, module in modules:
        held = isinstance(module._modules.get("base_layer"), nn.Module) and not _is_within(path, found)
        if held and (layer := _wrapped(path, module)) is not None:
            found[path] = layer
    wrapped = dict(found)
    for path, module in reversed(modules):
        start = f"{path}." if path else ""
        inner = any(other.startswith(start) for other in found)
        if inner or path in wrapped or _is_within(path, wrapped) or isinstance(module, _CONTAINERS):
            continue
        if (layer := _by_hand(path, module)) is not None:
            found[path] = layer
    return sorted(found.values(), key=lambda layer: order[layer.name])


def _is_within(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _wrapped(path: str, module: nn.Module) -> AdaptedLayer | None:
    own = dict(module.named_parameters())
    base = {name: p for name, p in own.items() if name.split(".")[0] == "base_layer"}
    adapter = {name: p for name, p in own.items() if name not in base}
    weights = {name: p for name, p in base.items() if not is_lazy(p) and p.ndim != 1}
    return _layer(path, weights, adapter) if adapter else None


def _by_hand(path: str, module: nn.Module) -> AdaptedLayer | None:
    """A weight and two factors of lower rank, held by one module or by its direct parts."""
    held = {name: p for name, p in module.named_parameters() if name.count(".") <= 1}
    matrices = {name: p for name, p in held.items() if _is_matrix(p)}
    if not 3 <= len(matrices) <= _MOST_MATRICES:
        return None
    for name, weight in matrices.items():
        outs, ins = weight.shape
        others = {n: p for n, p in matrices.items() if n != name and min(p.shape) < min(outs, ins)}
        for n_down, down in others.items():
            rank = min(down.shape)
            if ins not in down.shape:
                continue
            for n_up, up in others.items():
                if n_up == n_down or min(up.shape) != rank or outs not in up.shape:
                    continue
                if not _is_chain(module, n_down, n_up, rank):
                    continue
                pair = {n_down: down, n_up: up}
                zero = sum(not bool(p.detach().any()) for p in pair.values())
                low = 2 * rank <= min(outs, ins)
                if low and (not weight.requires_grad or zero == 1) and outs * ins > 1:
                    return _layer(path, {name: weight}, pair)
    return None


def _is_chain(module: nn.Module, down: str, up: str, rank: int) -> bool:
    """Whether one factor can lead to the other: held alike, and linear layers say on which side their input is."""
    parts = [module._modules.get(name.rpartition(".")[0]) for name in (down, up)]
    first, second = (part if isinstance(part, nn.Linear) else None for part in parts)
    if first is None or second is None:
        return first is second
    return first.out_features == rank and second.in_features == rank


def _is_matrix(parameter: nn.Parameter) -> bool:
    return (
        not is_lazy(parameter)
        and not parameter.is_meta
        and parameter.ndim == 2
        and parameter.is_floating_point()
        and parameter.layout is torch.strided
    )


def _layer(path: str, weights: dict[str, nn.Parameter], adapter: dict[str, nn.Parameter]) -> AdaptedLayer:
    start = f"{path}." if path else ""
    matrices = [p for p in adapter.values() if _is_matrix(p)]
    plain = [p for p in weights.values() if _is_matrix(p)]
    shorts = [min(p.shape) for p in plain]
    factors = len(matrices) == 2 and len(plain) == 1
    rank = sum(p.numel() for p in matrices) / sum(plain[0].shape) if factors else 0.0
    rank = rank if factors and all(rank in p.shape for p in matrices) else 0.0
    return AdaptedLayer(
        name=path,
        base=tuple(start + name for name in weights),
        adapter=tuple(start + name for name in adapter),
        rank=int(rank) or None,
        short=shorts[0] if len(shorts) == 1 else None,
        stuck=bool(rank)
        and not any(p.requires_grad and bool(p.detach().any()) for p in matrices)
        and all(p.requires_grad for p in matrices),
    )
