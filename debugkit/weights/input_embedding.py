"""The table that a model looks its token ids up in, and whether it is trained."""

from __future__ import annotations

import torch

_MOST_VECTORS = 1024
_FEWEST = 8
_STRUCTURE = 1.3


def input_embedding(model: torch.nn.Module, largest: int = 0) -> torch.Tensor | None:
    """The vectors ``[ids, width]`` of the input embedding, as the model names it, else its largest table.

    Args:
        model: the model.
        largest: the largest id that a table must have a row for, where the model does not name one.

    Returns:
        ``None`` where there is no such table.
    """
    getter = getattr(model, "get_input_embeddings", None)
    if callable(getter):
        try:
            module = getter()
        except (NotImplementedError, AttributeError):
            module = None
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.is_floating_point():
            return weight
    tables = [
        m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings > largest
    ]
    return max(tables, key=lambda table: table.shape[0], default=None)


def is_trained(weight: torch.Tensor | None, structure: float = _STRUCTURE) -> bool | None:
    """Whether vectors ``[ids, width]`` have the structure that training leaves behind.

    Independent draws of one spread have no singular value above ``(sqrt(rows) + sqrt(columns)) * spread``
    (Marchenko-Pastur). Trained vectors share directions that stand far above it.

    Args:
        weight: the vectors.
        structure: how far above it, as a factor; the smallest tables of independent draws come to 1.08.

    Returns:
        ``None`` where there is no embedding, or one too small to tell.
    """
    if weight is None or weight.is_meta or min(weight.shape) < _FEWEST:
        return None
    step = -(-weight.shape[0] // _MOST_VECTORS)
    rows = weight.detach()[::step].float().cpu()
    spread = float(rows.square().mean().sqrt())
    if not rows.isfinite().all() or spread == 0:
        return None
    edge = (rows.shape[0] ** 0.5 + rows.shape[1] ** 0.5) * spread
    return bool(torch.linalg.matrix_norm(rows, 2) > structure * edge)
