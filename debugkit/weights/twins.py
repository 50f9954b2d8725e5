"""Units of one layer that are identical, and stay so: equal weights with equal gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from debugkit.tracing.layers import Layer, Layers, is_plain

_MOST_VALUES = 2**25
_FIRST = 16
_ROUNDING = 64


@dataclass(frozen=True)
class Twins:
    """The identical units of one weight.

    Attributes:
        units: how many units it has.
        identical: how many of them have the same values as another.
        stuck: how many of these have the same gradient too, so that no step tells them apart. Where the whole weight
            is one number other than 0, a gradient of zeros counts: it comes alive for all of them at once. Where it is
            0, as at the start of many branches, only all units together count.
        constant: the value of the whole weight, where there is only one; ``None`` else.
    """

    units: int
    identical: int
    stuck: int
    constant: float | None


@torch.no_grad()
def twin_units(model: torch.nn.Module, layers: Layers) -> dict[str, Twins]:
    """The weights of hidden layers with identical units, from the gradients that are there.

    Layers of one unit, grouped convolutions (whose units see different inputs) and frozen weights are left out.
    """
    hidden = layers.hidden
    parameters = dict(model.named_parameters())
    found = {}
    for name, layer in layers.layers.items():
        weight = parameters[name]
        if name not in hidden or layer.grouped or not weight.requires_grad or not is_plain(weight):
            continue
        twins = _twins(weight, parameters.get(layer.bias or ""), layer)
        if twins is not None:
            found[name] = twins
    return found


def _twins(weight: torch.nn.Parameter, bias: torch.nn.Parameter | None, layer: Layer) -> Twins | None:
    if layer.units < 2 or layer.fan_in < 2 or weight.numel() > _MOST_VALUES:
        return None
    rows = _rows(weight.detach(), layer)
    if _groups(rows[:, :_FIRST], layer.units) is None:
        return None
    if bias is not None and bias.numel() == layer.units:
        rows = torch.cat([rows, bias.detach().reshape(-1, 1).to(rows.dtype)], 1)
    groups = _groups(rows, layer.units)
    if groups is None:
        return None
    flat = weight.detach().flatten()
    constant = float(flat[0]) if bool((flat == flat[0]).all()) else None
    identical, stuck = int(groups.bincount()[groups].gt(1).sum()), 0
    if weight.grad is not None and is_plain(weight.grad):
        stuck = _stuck(groups, _rows(weight.grad, layer), even_zero=bool(constant))
    if constant == 0 and stuck < layer.units:
        stuck = 0
    return Twins(layer.units, identical, stuck, constant)


def _rows(values: torch.Tensor, layer: Layer) -> torch.Tensor:
    return values.movedim(layer.axis, 0).reshape(layer.units, -1)


def _groups(rows: torch.Tensor, units: int) -> torch.Tensor | None:
    """A number per row, equal for equal rows; ``None`` where all differ."""
    _, groups = torch.unique(rows, dim=0, return_inverse=True)
    return None if int(groups.max()) + 1 == units else groups


def _stuck(groups: torch.Tensor, gradient: torch.Tensor, even_zero: bool) -> int:
    """How many rows of equal groups have one gradient; one of zeros counts on request."""
    order = torch.argsort(groups, stable=True)
    sorted_groups, sorted_rows = groups[order], gradient[order].float()
    size = sorted_rows.abs().amax(1)
    same = sorted_groups[1:] == sorted_groups[:-1]
    apart = (sorted_rows[1:] - sorted_rows[:-1]).abs().amax(1)
    tolerance = _ROUNDING * torch.finfo(gradient.dtype).eps * size[1:]
    linked = same & (apart <= tolerance) & ((size[1:] > 0) | even_zero)
    member = torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    member[1:] |= linked
    member[:-1] |= linked
    return int(member.sum())
