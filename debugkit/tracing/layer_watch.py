"""Watching the layers of a model while a step runs; nothing of the activations is kept but a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from debugkit.tracing.dropout import bound, drops
from debugkit.tracing.layer_flow import (
    DROPOUTS,
    NONLINEAR,
    NORMS,
    RECURRENT,
    Flow,
    FlowWatch,
    flows_of,
    is_weighted,
    tensor_arguments,
)
from debugkit.tracing.layers import Activation, Collapse, Dropout, Layer, Layers, is_plain
from debugkit.tracing.norm_watch import NormWatch
from debugkit.tracing.source import user_location

_FLAT_BELOW = {"relu": 0.0, "relu6": 0.0, "gelu": -6.0, "silu": -12.0, "mish": -12.0}
_FLAT_BEYOND = {"tanh": 4.15, "sigmoid": 6.9}  # where the slope is under 0.001
_SUM_FIRST = frozenset({"addmm", "addmv", "addbmm", "baddbmm"})
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_WITH_BIAS = frozenset({"linear", *_CONVOLUTIONS, *_SUM_FIRST})
_MOST_VALUES = 2**22
_MOST_ROWS = 16
_MIXING_BLACK_BOXES = RECURRENT | {"multi_head_attention_forward", "scaled_dot_product_attention", "bilinear"}


@dataclass
class _Sizes:
    """Sums over the calls of one layer; single numbers stay tensors, so that no device has to wait."""

    layer: Layer
    depth: int
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    spreads: list[torch.Tensor] = field(default_factory=list)


@dataclass
class _Values:
    """What the calls of one activation got."""

    activation: Activation
    highest: list[torch.Tensor] = field(default_factory=list)
    squares: list[torch.Tensor] = field(default_factory=list)
    saturated: list[torch.Tensor] = field(default_factory=list)


class LayerWatch:
    """Collects the layers of one step.

    Args:
        model: the model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._flow = FlowWatch(model)
        self._parameters = dict(model.named_parameters())
        self._sizes: dict[str, _Sizes] = {}
        self._values: dict[tuple[str, str], _Values] = {}
        self._norms = NormWatch()
        self._dropouts: list[Dropout] = []
        self._dropped: Any = torch.utils.weak.WeakIdKeyDictionary()
        self._affine = True
        self._module: str | None = None
        self._whole = False
        self._edges: list[tuple[str, str]] = []

    def before(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Look at the arguments of a call before it may change them; gives what :meth:`after` wants back."""
        given = tensor_arguments(args, kwargs)
        if any(map(is_functorch_wrapped_tensor, given)):
            return None
        if name in _SUM_FIRST and len(given) == 3:
            given = [given[1], given[2], given[0]]
        flows = flows_of(self._flow, given)
        bare = name.rstrip("_")
        if given and flows[0].source is not None and (bare in _FLAT_BELOW or bare in _FLAT_BEYOND):
            self._activation(bare, given[0], flows[0])
        elif name in NORMS and given:
            dropout = self._dropped.get(given[0])
            bias = self._sizes[flows[0].source].layer.bias if flows[0].source in self._sizes else None
            direct = bias if flows[0].last in ("linear", "conv1d", "conv2d", "conv3d") else None
            rate = self._dropouts[dropout].rate if dropout is not None else 0.0
            self._norms.see(func, name, args, kwargs, flows[0], direct, rate, self._module)
        return given, flows

    def after(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        seen: Any,
    ) -> None:
        """Look at the result of a call."""
        if seen is None:
            return
        given, flows = seen
        results = tensor_arguments((result,), {})
        if name == "__setitem__" and given:
            results = given[:1]
        if not results:
            return
        if name in _MIXING_BLACK_BOXES:
            self._affine = False
        if len(given) >= 2 and isinstance(result, torch.Tensor) and is_weighted(name, flows):
            self._layer(name, given, flows, result)
        else:
            if name in _MIXING_BLACK_BOXES and (key := self._black_box(flows)):
                flows = [replace(flow, layers=frozenset({key})) for flow in flows[:1]]
                given = given[:1]
            self._flow.carry(name, given, flows, results)
        if name in DROPOUTS and isinstance(result, torch.Tensor) and drops(func, args, kwargs):
            self._dropped[result] = len(self._dropouts)
            rate = float(bound(func, args, kwargs).get("p", 0.5))
            self._dropouts.append(Dropout(rate, self._module, user_location(), on_outputs=False))

    def at(self, stack: list[str]) -> None:
        """The modules whose forwards are running, outermost first."""
        self._module = stack[-1] if stack else None
        self._whole = bool(stack) and not stack[0]

    def see_loss(self, prediction: Any) -> None:
        """A loss function was given a prediction."""
        index = self._dropped.get(prediction) if isinstance(prediction, torch.Tensor) else None
        if index is not None:
            self._dropouts[index] = replace(self._dropouts[index], on_outputs=True)

    def layers(self) -> Layers:
        """What was seen, as numbers."""
        return Layers(
            layers={name: _measured(sizes) for name, sizes in self._sizes.items()},
            activations=tuple(found for values in self._values.values() if (found := _judged(values))),
            norms=self._norms.norms(),
            dropouts=tuple(self._dropouts),
            collapse=self._collapse(),
            weighted=len(self._sizes),
        )

    def _black_box(self, flows: list[Flow]) -> str | None:
        return next((flow.parameter for flow in flows if flow.constant and flow.parameter), None)

    @torch.no_grad()
    def _layer(
        self,
        name: str,
        given: list[torch.Tensor],
        flows: list[Flow],
        result: torch.Tensor,
    ) -> None:
        place = 0 if flows[0].constant else 1
        weight, data = flows[place], flows[1 - place]
        key = weight.parameter or f"{self._module}:{name}"
        depth = data.depth
        self._affine = self._affine and self._whole and depth != NONLINEAR
        self._edges += [(before, key) for before in data.layers if depth != NONLINEAR]
        axis = -3 if name.endswith("2d") else -4 if name.endswith("3d") else -2 if name.endswith("1d") else -1
        self._flow.layer(result, NONLINEAR if depth == NONLINEAR else depth + 1, key, axis, name)
        if weight.parameter is None or not is_plain(result) or not is_plain(given[1 - place]):
            return
        if key not in self._sizes:
            bias = flows[2].parameter if len(flows) > 2 and name in _WITH_BIAS else None
            values = self._parameters[key]
            units = 1 if name.startswith("conv_transpose") else 0
            if name not in ("linear", *_CONVOLUTIONS):
                units = values.ndim - 1 if (place == 1) != weight.flipped else 0
            self._sizes[key] = _Sizes(_describe(key, name, values, units, bias, result), depth)
        sizes = self._sizes[key]
        sizes.layer = replace(sizes.layer, before=sizes.layer.before | (data.layers - {key}))
        if len(sizes.inputs) >= _MOST_ROWS:
            return
        sizes.inputs.append(_mean_square(given[1 - place]))
        sizes.outputs.append(_mean_square(result))
        rows = _sample(result)
        sizes.spreads.append(_mean_square(rows - rows.mean(0)) if len(rows) > 1 else sizes.outputs[-1])

    @torch.no_grad()
    def _activation(self, op: str, given: torch.Tensor, flow: Flow) -> None:
        if not is_plain(given) or flow.source is None or flow.axis >= given.ndim:
            return
        key = (flow.source, op)
        units = given.shape[flow.axis]
        if key not in self._values:
            activation = Activation(
                flow.source, op, self._module, user_location(), units, 0, 0.0, 0.0, 0.0, 0.0
            )
            self._values[key] = _Values(activation)
        values = self._values[key]
        if units != values.activation.units or not given.numel():
            return
        samples = values.activation.samples + given.numel() // units
        values.activation = replace(values.activation, samples=samples)
        others = [d for d in range(given.ndim) if d != flow.axis]
        highest = given.detach().amax(others) if others else given.detach()
        values.highest = [torch.maximum(values.highest[0], highest) if values.highest else highest]
        values.squares.append(_mean_square(given))
        if op in _FLAT_BEYOND:
            values.saturated.append((given.detach().abs() > _FLAT_BEYOND[op]).float().mean())

    def _collapse(self) -> Collapse | None:
        if not self._affine or not self._edges:
            return None
        names = dict.fromkeys(name for edge in self._edges for name in edge)
        if not all(name in self._sizes for name in names):
            return None
        narrow = any(
            _is_narrow(self._sizes[one].layer, self._sizes[other].layer) for one, other in self._edges
        )
        order = [name for name in self._sizes if name in names]
        return Collapse(tuple(order), narrow)


def _is_narrow(layer: Layer, following: Layer) -> bool:
    """Whether a layer is narrower than what is before and after it; filters overlap, so few of them do not tell."""
    most = min(layer.fan_in, following.units)
    return layer.units < (most if layer.op == "linear" else most / 2)


def _describe(
    key: str, op: str, weight: torch.Tensor, axis: int, bias: str | None, result: torch.Tensor
) -> Layer:
    units = weight.shape[axis] if weight.ndim else 1
    channels = result.shape[-1 - int(op[-2])] if op in _CONVOLUTIONS and result.ndim > int(op[-2]) else units
    fan_in = weight.numel() // max(1, units)
    return Layer(
        name=key,
        op=op,
        units=units,
        fan_in=fan_in,
        axis=axis,
        grouped=channels != units or (op in _CONVOLUTIONS and weight.shape[1 - axis] == 1 < units),
        bias=bias,
        before=frozenset(),
        input_rms=0.0,
        output_rms=0.0,
        output_spread=0.0,
        location=user_location(),
    )


def _sample(values: torch.Tensor) -> torch.Tensor:
    """A few rows, in at least single precision."""
    rows = values.detach()
    if rows.ndim and len(rows) > _MOST_ROWS:
        rows = rows[:_MOST_ROWS]
    while rows.ndim > 1 and rows.numel() > _MOST_VALUES:
        rows = rows[:, ::2] if rows.shape[1] > 1 else rows[..., ::2]
    return rows.double() if rows.dtype == torch.float64 else rows.float()


def _mean_square(values: torch.Tensor) -> torch.Tensor:
    return _sample(values).square().mean()


def _measured(sizes: _Sizes) -> Layer:
    return replace(
        sizes.layer,
        input_rms=_root(sizes.inputs),
        output_rms=_root(sizes.outputs),
        output_spread=_root(sizes.spreads),
    )


def _root(squares: list[torch.Tensor]) -> float:
    if not squares:
        return 0.0
    mean = float(torch.stack([one.double() for one in squares]).mean())
    return math.sqrt(mean) if math.isfinite(mean) else math.inf


def _judged(values: _Values) -> Activation | None:
    if not values.highest:
        return None
    size = _root(values.squares)
    highest = values.highest[0].float()
    flat = _FLAT_BELOW.get(values.activation.op)
    top = float(highest.max())
    return replace(
        values.activation,
        dead_share=float((highest < flat).float().mean()) if flat is not None else 0.0,
        margin=(flat - top) / size if flat is not None and size else 0.0,
        saturated_share=float(torch.stack(values.saturated).mean()) if values.saturated else 0.0,
        input_rms=size,
    )
