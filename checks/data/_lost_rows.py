"""Samples of which a batch holds less than the data set gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from debugkit import Finding, fail, warn
from debugkit.data.batch import split, tensors
from debugkit.data.loaders import inner_loader, is_map_style
from debugkit.data.rows import Rows

from ._plain import content

_FETCHED = 16
_FEWEST = 4


def lost_rows(loader: Any, batch: Any) -> Iterator[Finding]:
    """Findings for keys that differ from sample to sample, and of which the collate function keeps a few only.

    Up to 16 samples are fetched and collated again, and only where the first batch has parts of different lengths.
    """
    lengths = {len(tensor) for _, tensor in tensors(batch) if tensor.ndim}
    inner = inner_loader(loader)
    if len(lengths) < 2 or inner is None or not is_map_style(inner) or inner.batch_sampler is None:
        return
    try:
        items = [inner.dataset[place] for place in range(min(len(inner.dataset), _FETCHED))]  # type: ignore[arg-type]
        collated = inner.collate_fn(items)
    except Exception:  # the user's data set or collate function
        return
    for name, values, held in _pairs(items, collated):
        distinct = {content(value) for value in values}
        given = sum(value.numel() for value in values)
        if len(distinct) < 2 or len(items) in held.shape or held.numel() * 2 > given or not held.ndim:
            continue
        yield fail(
            f"`{name}` is another for each sample, and a batch of {len(items)} holds {len(held)} of them "
            f"({held.numel():,} of {given:,} values): the other samples get a value that is not theirs",
            where=name,
            hint="collate every sample's value, for example with `torch.stack`",
            rows=len(held),
            samples=len(items),
        )


def _pairs(items: Sequence[Any], batch: Any) -> Iterator[tuple[str, list[torch.Tensor], torch.Tensor]]:
    """Per key the values of the samples, and what became of them in the batch."""
    first = items[0]
    if isinstance(first, Mapping) and isinstance(batch, Mapping):
        keys = [(str(key), key) for key in first if key in batch]
    elif isinstance(first, (tuple, list)) and isinstance(batch, (tuple, list)) and len(first) == len(batch):
        keys = [(f"[{place}]", place) for place in range(len(first))]
    else:
        return
    for name, key in keys:
        values, held = [item[key] for item in items], batch[key]
        if isinstance(held, torch.Tensor) and all(isinstance(value, torch.Tensor) for value in values):
            yield name, values, held


def shared_row(batches: Sequence[Any], rows: Rows) -> Iterator[Finding]:
    """The warning for token ids or features of which each batch holds one row, another each time."""
    if len(batches) < 2:
        return
    found: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        inputs, labels = split(batch)
        counts = {len(tensor) for _, tensor in tensors(labels) if tensor.ndim}
        known = [(path, tensor) for path, tensor in tensors(batch) if tensor.ndim]
        if len(counts) != 1 or (count := next(iter(counts))) < _FEWEST:
            return
        if not any(len(tensor) == count for _, tensor in tensors(inputs) if tensor.ndim):
            return
        for path, tensor in known:
            if tensor.ndim == 2 and len(tensor) == 1 and count not in tensor.shape and _is_content(tensor):
                found.setdefault(path, []).append(tensor)
    for path, values in found.items():
        if len(values) == len(batches) and len({content(value) for value in values}) > 1:
            yield warn(
                f"`{path}` has one row in batches of {rows.batch_sizes[0]} samples, another in each batch: all samples of a "
                "batch share it",
                where=path,
                hint="return one entry per sample under each key from the collate function",
                rows=1,
                samples=rows.batch_sizes[0],
            )


def _is_content(tensor: torch.Tensor) -> bool:
    """Whether a row says more than positions, a mask or a constant."""
    values = {*tensor.flatten().tolist()}
    is_range = not tensor.is_floating_point() and bool((tensor.flatten().diff() == 1).all())
    return len(values) > 2 and not is_range
