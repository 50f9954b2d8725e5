"""How much of the evaluation data is drawn from the places that training draws from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from debugkit.data.provenance import holds_samples, same_store, sources


@dataclass(frozen=True)
class Overlap:
    """What two loaders share, by what they draw.

    Attributes:
        shared: samples of the evaluation split that training draws too.
        total: samples of the evaluation split.
        by_object: whether they are read from the same objects, and not from equal ones.
    """

    shared: int
    total: int
    by_object: bool


def overlap(train_loader: Any, eval_loader: Any) -> Overlap | None:
    """What two loaders share; ``None`` where their parts do not say what they draw, or draw from different data."""
    train, evaluation = sources(train_loader), sources(eval_loader)
    if not train or not evaluation:
        return None
    shared, known, by_object = 0, False, True
    for one in evaluation:
        matching = [other for other in train if same_store(one.dataset, other.dataset)]
        if not matching:
            continue
        known = True
        by_object &= all(one.dataset is other.dataset for other in matching)
        drawn = np.unique(np.concatenate([other.places for other in matching]))
        hits = int(np.isin(one.places, drawn).sum())
        if hits and not _stays(one.dataset, int(one.places[0])):
            return None
        shared += hits
    return Overlap(shared, sum(len(one.places) for one in evaluation), by_object) if known else None


def _stays(dataset: Any, place: int) -> bool:
    """Whether a place of a data set always holds the same sample, and none that is made up when it is asked for."""
    try:
        if isinstance(dataset, (list, tuple, torch.Tensor, np.ndarray)) or holds_samples(dataset):
            return True
        return _equal(dataset[place], dataset[place])
    except Exception:  # the user's data set
        return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)
