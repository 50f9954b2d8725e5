"""Layers of a fresh model whose weights start far too large or far too small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.layers import Layer, Layers, is_plain
from debugkit.weights.freshness import is_drawn_by_library, is_noise, model_is_fresh

USUAL_GAIN = 3**-0.5  # of torch's own Linear and Conv
_HE = 2**0.5
_ROOM = 3.0
_KEPT = 0.2
_VANISHED = 1e-3
_SQUASHED = 0.5


@dataclass(frozen=True)
class OffScale:
    """A weight on the wrong scale.

    Attributes:
        name: its dotted name.
        kind: ``large`` or ``small``.
        rms: root mean square of its values.
        gain: by how much it scales independent inputs: the root mean square times the square root of the fan-in.
        fan_in: how many inputs each unit has.
        reached: the name of a layer that gets what follows, where it was measured.
        reached_rms: the size of what that layer gets.
    """

    name: str
    kind: Literal["large", "small"]
    rms: float
    gain: float
    fan_in: int
    reached: str | None
    reached_rms: float


@dataclass(frozen=True)
class InitialScales:
    """The scale of each weight against its fan-in.

    Attributes:
        off: the weights on the wrong scale, in order; none of a model that is not fresh.
        gains: of all weights that mix data, by name.
        fresh: whether the model is; ``None`` where nothing depended on it.
    """

    cost: ClassVar[Cost] = "backward"
    off: tuple[OffScale, ...]
    gains: dict[str, float]
    fresh: bool | None

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, step: TrainingStep, *, max_factor: float = 10.0
    ) -> InitialScales:
        """Compare the scales with what is usual, and where they are off, with what comes out.

        Raises:
            Unavailable: the step mixes no data by a weight of the model.
        """
        if not step.layers.layers:
            raise Unavailable("the step mixes no data by a weight of the model itself")
        parameters = dict(target.model.named_parameters())
        gains = {
            name: _rms(parameters[name]) * math.sqrt(layer.fan_in)
            for name, layer in step.layers.layers.items()
            if is_plain(parameters[name])
        }
        off = [
            *_large(step.layers, gains, parameters, max_factor),
            *_small(step.layers, gains, parameters, max_factor),
        ]
        if not off:
            return InitialScales((), gains, None)
        fresh = model_is_fresh(target.model)
        off = [one for one in off if fresh and is_noise(parameters[one.name])]
        with sandbox.probe():
            off = [one for one in off if not is_drawn_by_library(target.model, [one.name])]
        if sum(one.kind == "small" for one in off) < 2:
            off = [one for one in off if one.kind == "large"]
        return InitialScales(tuple(off), gains, fresh)


def _large(
    layers: Layers, gains: dict[str, float], parameters: dict[str, torch.nn.Parameter], factor: float
) -> list[OffScale]:
    """Weights that make their outputs far larger than their inputs, where these arrive at another layer so."""
    squashed = {a.layer for a in layers.activations if a.saturated_share > _SQUASHED}
    found = []
    for name, gain in gains.items():
        layer = layers.layers[name]
        usual = max(factor * USUAL_GAIN, _ROOM * _HE * math.sqrt(max(1.0, layer.fan_in / layer.units)))
        if gain <= usual or layer.output_rms < factor / 2 * USUAL_GAIN * layer.input_rms:
            continue
        reached = [one for one in layers.after(name) if one.input_rms >= _KEPT * layer.output_rms]
        if reached or (name in squashed and layers.after(name)):
            first = reached[0] if reached else None
            found.append(
                OffScale(
                    name,
                    "large",
                    _rms(parameters[name]),
                    gain,
                    layer.fan_in,
                    first.name if first else None,
                    first.input_rms if first else layer.output_rms,
                )
            )
    return found


def _small(
    layers: Layers, gains: dict[str, float], parameters: dict[str, torch.nn.Parameter], factor: float
) -> list[OffScale]:
    """Several weights in series that leave nothing of what goes in: no norm and no residual path restores it."""
    weak = [layers.layers[name] for name, gain in gains.items() if 0 < gain < USUAL_GAIN / factor]
    if len(weak) < 2:
        return []
    reached = _vanished(layers, weak)
    if reached is None:
        return []
    return [
        OffScale(
            layer.name,
            "small",
            _rms(parameters[layer.name]),
            gains[layer.name],
            layer.fan_in,
            reached.name,
            reached.input_rms,
        )
        for layer in weak
    ]


def _vanished(layers: Layers, weak: list[Layer]) -> Layer | None:
    first = weak[0]
    for layer in weak[1:]:
        after = layers.after(layer.name)
        if after and max(one.input_rms for one in after) < _VANISHED * first.input_rms:
            return after[0]
    return None


@torch.no_grad()
def _rms(weight: torch.Tensor) -> float:
    return math.sqrt(float(weight.detach().float().square().mean()))
