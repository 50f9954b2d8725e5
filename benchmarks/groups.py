"""Optimizers as they should be: weight decay on matrices, none on norms, biases and embeddings."""

from __future__ import annotations

import torch

LEARNING_RATE, DECAY = 1e-3, 0.01


def groups(model: torch.nn.Module, decay: float = DECAY) -> list[dict[str, object]]:
    """The trainable parameters in two groups, with weight decay and without."""
    tables = {
        id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    rest = [p for p in trained if id(p) not in chosen]
    parts = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def adamw(model: torch.nn.Module, learning_rate: float = LEARNING_RATE) -> torch.optim.AdamW:
    """AdamW over :func:`groups`."""
    return torch.optim.AdamW(groups(model), lr=learning_rate)


def sgd(model: torch.nn.Module, learning_rate: float = 0.05) -> torch.optim.SGD:
    """SGD with momentum over :func:`groups`."""
    return torch.optim.SGD(groups(model), lr=learning_rate, momentum=0.9)
