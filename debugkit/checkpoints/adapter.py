"""A LoRA adapter: the update of each layer as it is, or merged with the base model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from debugkit.checkpoints.tensor import StoredTensor
from debugkit.errors import UsageError
from debugkit.weights.matrix import Array

_FACTOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight$")
_PREFIX = "base_model.model."


def updates(tensors: Sequence[StoredTensor], config: Mapping[str, Any]) -> list[StoredTensor]:
    """The product of the two factors of each adapted layer, scaled, as ``LAYER.weight``.

    Raises:
        UsageError: there are no pairs of factors.
    """
    factors: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        if (found := _FACTOR.match(tensor.name)) and len(tensor.shape) == 2:
            factors.setdefault(found[1], {})[found[2]] = tensor
    pairs = {layer: pair for layer, pair in factors.items() if len(pair) == 2}
    if not pairs:
        raise UsageError("the adapter has no pairs of `lora_A` and `lora_B` matrices")
    return [_update(layer, pair["A"], pair["B"], config) for layer, pair in pairs.items()]


def merged(
    base: Sequence[StoredTensor], tensors: Sequence[StoredTensor], config: Mapping[str, Any]
) -> list[StoredTensor]:
    """The base model's tensors with each update added.

    Raises:
        UsageError: an update fits no tensor of the base, or can't be merged as a product of two factors.
    """
    if config.get("use_dora") or any("lora_magnitude_vector" in tensor.name for tensor in tensors):
        raise UsageError("a DoRA adapter can't be merged from its factors alone; merge it with peft first")
    found = {tensor.name: tensor for tensor in base}
    saved = {tensor.name.removeprefix(_PREFIX): tensor for tensor in tensors if ".lora_" not in tensor.name}
    for update in updates(tensors, config):
        name = next((name for name in found if f".{name}".endswith(f".{update.name}")), None) or next(
            (name for name in found if f".{update.name}".endswith(f".{name}")), None
        )
        if name is None or found[name].shape not in (update.shape, update.shape[::-1]):
            raise UsageError(
                f"the adapter changes `{update.name}` {list(update.shape)}, which the base doesn't have"
            )
        found[name] = _sum(found[name], update)
    for name, tensor in saved.items():
        if name in found and found[name].shape == tensor.shape:
            found[name] = StoredTensor(name, tensor.shape, tensor.dtype, tensor.nbytes, tensor.load)
    return list(found.values())


def floats(tensor: StoredTensor) -> Array:
    """The values as float32, or float64 where they are stored so."""
    values = tensor.load()
    if tensor.dtype == "bfloat16":
        return (np.asarray(values).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float64 if tensor.dtype == "float64" else np.float32)


def _update(layer: str, first: StoredTensor, second: StoredTensor, config: Mapping[str, Any]) -> StoredTensor:
    rank = first.shape[0]
    strength = _pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", rank))
    scale = strength / (math.sqrt(rank) if config.get("use_rslora") else rank)
    shape = (second.shape[0], first.shape[1])
    if second.shape[1] != rank:
        raise UsageError(f"the factors of `{layer}` don't fit: {list(first.shape)} and {list(second.shape)}")

    def load() -> Array:
        return scale * (floats(second) @ floats(first))

    return StoredTensor(
        f"{layer}.weight",
        shape,
        "float32",
        first.nbytes + second.nbytes,
        load,
        quantised=f"update of rank {rank}",
    )


def _pattern(patterns: Any, layer: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?{pattern}$", layer):
            return float(value)
    return float(default)


def _sum(base: StoredTensor, update: StoredTensor) -> StoredTensor:
    def load() -> Array:
        change = update.load()
        return floats(base) + (change if change.shape == base.shape else change.T)

    return StoredTensor(base.name, base.shape, "float32", 4 * base.size, load, quantised=base.quantised)
