"""Models that one process must not run on its own."""

from __future__ import annotations

import dataclasses

import torch

from debugkit.target import Target


def why_not_alone(model: torch.nn.Module) -> str | None:
    """Why a model must not run out of turn: other processes would wait, or its parameters are not all here."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return f"{distributed.get_world_size()} processes train together"
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return "the model's parameters are sharded"
    return None


def at_rest(target: Target) -> Target:
    """A target of which only what needs no pass is judged."""
    return dataclasses.replace(target, train_loader=None, eval_loader=None)
