"""Healthy models written by hand, by name."""

from __future__ import annotations

from collections.abc import Callable

import hand_generative
import hand_relations
import hand_tables
import hand_text
import hand_vision
import torch

from debugkit import Target

MODELS: dict[str, Callable[[], Target]] = {
    name: make
    for module in (hand_vision, hand_text, hand_tables, hand_relations, hand_generative)
    for name, make in module.MODELS.items()
}


def pairs() -> list[tuple[str, str]]:
    """``("hand", name)`` of each model."""
    return [("hand", name) for name in MODELS]


def target_of(name: str) -> Target:
    """The target of a model; every call gives the same."""
    torch.manual_seed(0)
    return MODELS[name]()
