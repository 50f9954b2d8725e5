"""Heads that are new and were frozen together with the base that carries adapters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, fail, warn
from debugkit.probes.adapters import Adapters
from debugkit.probes.training_step import TrainingStep
from debugkit.weights.freshness import is_noise
from debugkit.weights.input_embedding import is_trained

_MOST_WEIGHTS = 12
_FEWEST_TRAINED = 2
_FEWEST_VALUES = 32
_LARGEST_SHARE = 0.25


def frozen_fresh_heads(model: nn.Module, adapted: Adapters, step: TrainingStep | None) -> Iterator[Finding]:
    """Frozen linear layers at the end of the model that are as their initialiser left them."""
    if step is None or not _base_is_trained(model, adapted):
        return
    for name, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        if weight is None or f"{name}.weight" in adapted.base or not step.module_calls.get(name):
            continue
        own = list(module.parameters())
        inside = any(name.startswith(f"{layer.name}.") for layer in adapted.layers)
        if inside or any(p.requires_grad for p in own) or not _is_last(name, adapted, step):
            continue
        if weight.is_meta or not weight.is_floating_point() or weight.numel() < _FEWEST_VALUES:
            continue
        if weight.shape[0] > _LARGEST_SHARE * weight.shape[1] or not is_noise(weight):
            continue
        bias = module._parameters.get("bias")
        told = f"`{name}` {list(weight.shape)} gives the model's outputs, is frozen with the base, and looks newly initialised"
        hint = f"train it: `modules_to_save=[{name.rpartition('.')[2]!r}]`, or the `task_type` of a task with a head"
        if bias is None:
            yield warn(
                f"{told} (its values can't be told from noise): it stays random", where=name, hint=hint
            )
        elif not bool(bias.detach().any()):
            yield fail(f"{told} (noise, and a bias of zeros): it stays random", where=name, hint=hint)


@torch.no_grad()
def _base_is_trained(model: nn.Module, adapted: Adapters) -> bool:
    """Whether most adapted weights have the structure of trained ones."""
    names = sorted(adapted.base)
    states = []
    for name in names[:: max(1, len(names) // _MOST_WEIGHTS)]:
        weight = model.get_parameter(name)
        if weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta:
            states.append(bool(is_trained(weight)))
    return sum(states) >= max(_FEWEST_TRAINED, len(states) / 2)


def _is_last(name: str, adapted: Adapters, step: TrainingStep) -> bool:
    """Whether a module first ran after every adapted layer did."""
    order = {module: index for index, module in enumerate(step.module_calls)}
    return all(order.get(layer.name, -1) < order[name] for layer in adapted.layers)
