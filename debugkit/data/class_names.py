"""Names of classes, as the labels or the model's config give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from debugkit.data.labels import Labels

_LONGEST = 40


def class_names(model: torch.nn.Module, labels: Labels) -> dict[int, str]:
    """Class names that someone gave: the labels' own, or a config's ``id2label`` without its placeholders."""
    if labels.names:
        return {index: _quotable(name) for index, name in labels.names.items()}
    table = _table(model)
    named = {}
    for index in labels.counts or {}:
        name = table.get(index, table.get(str(index)))
        if isinstance(name, str) and name != f"LABEL_{index}":
            named[index] = _quotable(name)
    return named


def entity_counts(model: torch.nn.Module, counts: Mapping[int, int], background: int) -> dict[int, int]:
    """Tag counts without the background; ``B-x`` and ``I-x`` count as one where the model names its tags."""
    table = _table(model)
    merged: dict[int, int] = {}
    for tag, count in counts.items():
        if tag == background:
            continue
        key, name = tag, table.get(tag)
        if isinstance(name, str) and name[1:2] in ("-", "_"):
            key = next(other for other in counts if str(table.get(other))[1:] == name[1:])
        merged[key] = merged.get(key, 0) + count
    return merged


def _table(model: torch.nn.Module) -> Mapping[Any, Any]:
    table = getattr(getattr(model, "config", None), "id2label", None)
    return table if isinstance(table, Mapping) else {}


def _quotable(name: str) -> str:
    return " ".join(name.split())[:_LONGEST].replace("`", "'")
