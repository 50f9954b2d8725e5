"""Where a loader's samples come from: which places of which data sets it draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from debugkit.data.loaders import inner_loader, is_map_style

Array = np.ndarray[Any, Any]

_LARGEST = 5_000_000
_DEEPEST = 8
_COMPARED = 256
_LARGEST_STORE = 2**28


@dataclass(frozen=True, eq=False)
class Source:
    """A data set and what is drawn from it.

    Attributes:
        dataset: a map-style data set, with every ``Subset`` and ``ConcatDataset`` around it taken off.
        places: ``[count]`` int64: the places that are drawn, in the order of the loader's own data set.
    """

    dataset: Any
    places: Array


def sources(loader: Any) -> list[Source] | None:
    """What a loader draws from, once per epoch; ``None`` where its parts do not say so."""
    inner = inner_loader(loader)
    if inner is None or not is_map_style(inner):
        return None
    places = _drawn(inner)
    return None if places is None else [*_resolved(inner.dataset, places, _DEEPEST)]


def origins(dataset: Any, places: Array) -> Array:
    """The places in the data set inside a ``Subset``, or several, that places in it stand for."""
    while type(dataset) is Subset and len(dataset.indices) <= _LARGEST:
        places = np.asarray([int(dataset.indices[place]) for place in places.tolist()], dtype=np.int64)
        dataset = dataset.dataset
    return places


def _drawn(loader: DataLoader[Any]) -> Array | None:
    """The places that a sampler of torch's own can draw."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            return None
        sampler = loader.batch_sampler.sampler
    try:
        count = len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return np.asarray([int(place) for place in sampler.indices], dtype=np.int64)
    whole = isinstance(sampler, (SequentialSampler, RandomSampler))
    return np.arange(count) if whole and count <= _LARGEST else None


def _resolved(dataset: Any, places: Array, depth: int) -> Iterator[Source]:
    if depth and type(dataset) is Subset and len(dataset.indices) <= _LARGEST:
        indices = np.asarray([int(index) for index in dataset.indices], dtype=np.int64)
        if len(places) and places.max(initial=0) >= len(indices):
            return
        yield from _resolved(dataset.dataset, indices[places], depth - 1)
    elif depth and type(dataset) is ConcatDataset:
        ends = np.asarray(dataset.cumulative_sizes)
        part = np.searchsorted(ends, places, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        for number, inner in enumerate(dataset.datasets):
            if (part == number).any():
                yield from _resolved(inner, places[part == number] - starts[number], depth - 1)
    else:
        yield Source(dataset, places)


def same_store(one: Any, other: Any) -> bool:
    """Whether two data sets read the same samples at the same places.

    They are one object; or of one class, with equal numbers, texts and arrays in all their attributes, one of
    them with an entry per sample. What transforms the samples may differ.
    """
    if one is other:
        return True
    mine, theirs = getattr(one, "__dict__", None), getattr(other, "__dict__", None)
    if type(one) is not type(other) or not mine or not theirs or mine.keys() != theirs.keys():
        return False
    try:
        return (
            len(one) == len(other)
            and holds_samples(one)
            and all(_alike(mine[key], theirs[key]) for key in mine)
        )
    except Exception:  # attributes of the user's that can't be compared
        return False


def holds_samples(dataset: Any) -> bool:
    """Whether some attribute of a data set has one entry per sample."""
    count = len(dataset)
    return count > 1 and any(
        _is_store(value) and len(value) == count
        for attribute in vars(dataset).values()
        for value in (attribute if isinstance(attribute, tuple) and len(attribute) <= 16 else (attribute,))
    )


def _is_store(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim > 0
    return isinstance(value, (list, tuple))


def _alike(one: Any, other: Any) -> bool:
    """Whether two attributes hold equal data; what is no data is alike."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _equal_tensors(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (
            one.shape == other.shape and one.dtype == other.dtype and bool((_some(one) == _some(other)).all())
        )
    if isinstance(one, (str, bytes, bool, int, float, type(None))) or type(one) is not type(other):
        return type(one) is type(other) and bool(one == other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(
            _alike(a, b) for a, b in zip(_some(one), _some(other), strict=True)
        )
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in [*one][:_COMPARED])
    if isinstance(one, torch.nn.Module) or not hasattr(one, "__getitem__"):
        return True
    return callable(getattr(one, "equals", None)) and bool(one.equals(other))


def _equal_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout is not torch.strided or one.device != other.device:
        return False
    return torch.equal(_some(one), _some(other))


def _some(values: Any) -> Any:
    """All of a store, or of a large one entries from all over it."""
    large = values.nbytes > _LARGEST_STORE if hasattr(values, "nbytes") else len(values) > _COMPARED
    return values[:: max(1, len(values) // _COMPARED)] if large else values
