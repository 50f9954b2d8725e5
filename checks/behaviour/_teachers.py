"""Frozen parts of a model, and those that are copies of parts that train: averaged teachers."""

from __future__ import annotations

import torch

_COPY = 0.5


def is_frozen(model: torch.nn.Module, name: str) -> bool:
    """Whether the nearest module around ``name`` that has parameters has only frozen ones."""
    while True:
        parameters = list(model.get_submodule(name).parameters())
        if parameters or not name:
            return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        name = name.rpartition(".")[0]


def has_trainable_twin(model: torch.nn.Module, name: str) -> bool:
    """Whether the largest frozen module around ``name`` has the weights of another one, which trains, or nearly so."""
    path = name.split(".")
    around = (".".join(path[:depth]) for depth in range(1, len(path) + 1))
    frozen = next((part for part in around if is_frozen(model, part)), name)
    part = model.get_submodule(frozen)
    built = _build_of(part)
    return any(
        other != frozen
        and not other.startswith(f"{frozen}.")
        and _build_of(module) == built
        and all(parameter.requires_grad for parameter in module.parameters())
        and _are_near(part, module)
        for other, module in model.named_modules()
        if other
    )


def _are_near(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = [
        (a.detach(), b.detach())
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
        if a.ndim > 1
    ]
    shared = sum(float((a * b).sum()) for a, b in pairs)
    sizes = sum(float(a.square().sum()) for a, _ in pairs) * sum(float(b.square().sum()) for _, b in pairs)
    return bool(shared > _COPY * sizes**0.5 > 0)


def _build_of(module: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in module.state_dict(keep_vars=True).items()]
