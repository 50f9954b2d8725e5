"""Lengths that loaders and data sets claim, against what they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from debugkit import Finding, fail, note, warn
from debugkit.data.batch import tensors
from debugkit.data.loaders import inner_loader, is_map_style
from debugkit.data.provenance import sources
from debugkit.data.rows import Rows
from debugkit.data.shares import percent
from debugkit.errors import one_line

_TRIED = 16
_ALMOST = 0.05
_UNUSED = 0.1


def length(value: Any) -> int | None:
    """``len(value)``, or ``None`` where it has none."""
    try:
        return len(value)
    except Exception:  # the user's own ``__len__``
        return None


def nothing_to_read(loader: Any, name: str) -> Finding | None:
    """The finding for a loader without a single batch."""
    inner = inner_loader(loader)
    if length(loader if inner is None else inner) != 0:
        return None
    hint = f"look at what `{name}` is made from"
    if inner is None:
        return fail(f"`{name}` is empty: it yields no batch", hint=hint, batches=0)
    size, count = inner.batch_size, length(inner.dataset)
    sampler = inner.batch_sampler
    if type(sampler) is BatchSampler:
        size, drawn = sampler.batch_size, length(sampler.sampler)
        if drawn and sampler.drop_last:
            return fail(
                f"`{name}` yields no batch: `drop_last=True` drops the only one, since {drawn:,} samples do not fill a "
                f"batch of {size:,}",
                hint="choose a `batch_size` of at most the number of samples, or `drop_last=False`",
                batches=0,
                samples=drawn,
                batch_size=size,
            )
        if count and drawn == 0:
            hint = "look at the sampler, which draws nothing"
    return fail(f"`{name}` yields no batch: its data set has {count or 0:,} samples", hint=hint, batches=0)


def wrong_loader_length(loader: Any, rows: Rows, name: str) -> Finding | None:
    """The finding for a loader that yields another number of batches than it has by its length."""
    claimed, found = length(loader), len(rows.batch_sizes)
    if not rows.complete or claimed is None or claimed == found or not found:
        return None
    inner = inner_loader(loader)
    if inner is not None and not is_map_style(inner) and inner.num_workers > 1 and found > claimed:
        return note(
            f"`len({name})` is {claimed:,} and {found:,} batches come from {inner.num_workers} workers; see "
            "`loader-randomness`"
        )
    level = warn if abs(found - claimed) <= _ALMOST * claimed else fail
    return level(
        f"`len({name})` is {claimed:,}, and {found:,} batches ({rows.count:,} samples) come in an epoch: whatever is "
        "planned by the length, as learning rate schedules are, is off",
        hint="make `__len__` of the data set return the number of samples that it yields",
        claimed=claimed,
        batches=found,
    )


def places_without_sample(loader: DataLoader[Any], name: str) -> Finding | None:
    """The finding for a data set that has no sample at places that its length promises."""
    found, claimed = sources(loader), length(loader.dataset)
    if loader.batch_sampler is None or not found or not claimed:
        return None
    drawn = np.arange(claimed) if found[0].dataset is not loader.dataset else found[0].places
    places = (
        sorted({*drawn[np.linspace(0, len(drawn) - 1, _TRIED).astype(int)].tolist()}) if len(drawn) else []
    )
    errors = {place: error for place in places if (error := _lookup_error(loader.dataset, place)) is not None}
    if not errors or len(errors) == len(places):
        return None
    place, error = next(iter(errors.items()))
    labelled = isinstance(error, KeyError)
    return fail(
        f"`len(dataset)` is {claimed:,}, and {len(errors)} of {len(places)} places that were tried have no sample: "
        f"`dataset[{place}]` raises {one_line(error)}",
        where=f"{name}[{place}]",
        hint="select rows by position (`.iloc`), or call `reset_index(drop=True)` after the split"
        if labelled
        else "make `__len__` return the number of samples that can be read",
        length=claimed,
    )


def _lookup_error(dataset: Any, place: int) -> LookupError | None:
    try:
        dataset[place]
    except LookupError as error:
        return error
    except Exception:  # anything else is no question of length
        return None
    return None


def unread_rows(loader: DataLoader[Any], others: Any) -> Iterator[Finding]:
    """Findings for a data set whose length is not that of the rows that it reads from.

    Args:
        loader: a loader over a map-style data set.
        others: the loader of the other split, which may read the rest.
    """
    for source in sources(loader) or ():
        claimed = length(source.dataset)
        if not claimed or isinstance(source.dataset, torch.Tensor | list | tuple):
            continue
        stores = [store for store in _stores(source.dataset) if _is_read(source.dataset, claimed, store[2])]
        if not stores:
            continue
        counts = {len(store) for _, _, store in stores}
        if len(counts) > 1:
            (path, _, store), (other_path, _, other) = (
                stores[0],
                next(s for s in stores if len(s[2]) != len(stores[0][2])),
            )
            if not _is_moved(store, other):
                yield warn(
                    f"the data set pairs rows by their place, but `{path}` has {len(store):,} and `{other_path}` "
                    f"{len(other):,}: where rows were dropped from one only, those behind them have a wrong partner",
                    hint="drop the same rows from both",
                    rows=sorted(counts),
                )
            return
        path, parts, store = stores[0]
        if len(store) <= claimed:
            continue
        unread = len(store) - claimed
        if parts == claimed or claimed in _widths(store):
            what = "the number of its parts" if parts == claimed else "the number of columns"
            yield fail(
                f"`len(dataset)` is {claimed:,}, {what}, where `{path}` has {len(store):,} rows: {unread:,} samples "
                "are never read",
                hint="return the number of rows in `__len__`",
                length=claimed,
                rows=len(store),
            )
        elif unread >= _UNUSED * len(store) and not _is_meant(source.dataset, claimed, others):
            yield warn(
                f"`len(dataset)` is {claimed:,} where `{path}` has {len(store):,} rows: {percent(unread / len(store))} "
                "of the samples are never read",
                hint="return the number of rows in `__len__`",
                length=claimed,
                rows=len(store),
            )
        return


def _stores(dataset: Any) -> Iterator[tuple[str, int, Any]]:
    """Rows that a data set holds: their name, the number of parts of what holds them, and the rows."""
    for name, value in (getattr(dataset, "__dict__", None) or {}).items():
        if _is_rows(value):
            yield name, 0, value
        data = getattr(value, "data", None) if not isinstance(value, (torch.Tensor, np.ndarray)) else None
        held = data if isinstance(data, Mapping) else value
        if isinstance(held, Mapping) and len(held) <= 64:
            yield from ((f"{name}[{key!r}]", len(held), part) for key, part in held.items() if _is_rows(part))
        elif isinstance(held, (list, tuple)) and 1 < len(held) <= 8:
            yield from (
                (f"{name}[{place}]", len(held), part) for place, part in enumerate(held) if _is_rows(part)
            )


def _is_rows(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim > 0 and len(value) > 1
    return isinstance(value, list) and len(value) > 1


def _is_read(dataset: Any, claimed: int, store: Any) -> bool:
    """Whether each sample of a data set holds the row of a store at its place."""
    count = min(claimed, len(store))
    places = sorted({*np.linspace(0, count - 1, 8).astype(int).tolist()})
    try:
        rows = [_value(store[place]) for place in places]
        if any(row is None for row in rows) or len({_fingerprint(row) for row in rows}) < 2:
            return False
        return all(
            any(_same(row, part) for part in _leaves(dataset[place]))
            for row, place in zip(rows, places, strict=True)
        )
    except Exception:  # the user's data set
        return False


def _is_moved(one: Any, other: Any) -> bool:
    """Whether the shorter of two stores is the longer one without its first rows, as next steps are."""
    long, short = (one, other) if len(one) > len(other) else (other, one)
    places = np.linspace(0, len(short) - 1, 8).astype(int).tolist()
    skipped = len(long) - len(short)
    return all(_same(_value(short[place]), _value(long[place + skipped])) for place in places)


def _leaves(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        for value in item.values():
            yield from _leaves(value)
    elif isinstance(item, (list, tuple)) and not all(isinstance(value, (int, float)) for value in item):
        for value in item:
            yield from _leaves(value)
    else:
        yield _value(item)


def _value(item: Any) -> Any:
    """Numbers as an array, a text as it is; ``None`` for anything else."""
    if isinstance(item, str):
        return item
    if isinstance(item, torch.Tensor):
        return item.detach().cpu().double().numpy()
    if isinstance(item, (bool, int, float, np.number, np.ndarray, list, tuple)):
        array = np.asarray(item)
        return array.astype(float) if array.dtype.kind in "biuf" else None
    return None


def _fingerprint(value: Any) -> Any:
    return value if isinstance(value, str) else value.tobytes()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str) or other is None:
        return bool(isinstance(one, str) and isinstance(other, str) and one == other)
    return one.shape == other.shape and bool(np.allclose(one, other, equal_nan=True))


def _widths(store: Any) -> Sequence[int]:
    return tuple(store.shape[1:2]) if hasattr(store, "shape") else ()


def _is_meant(dataset: Any, claimed: int, others: Any) -> bool:
    """Whether an attribute holds the length, or the other split reads from the same kind of data set."""
    held = [value for value in vars(dataset).values() if isinstance(value, (int, float, range))]
    if any(value == claimed for value in held if not isinstance(value, range)):
        return True
    return any(type(source.dataset) is type(dataset) for source in sources(others) or ())


def unlike_devices(batch: Any) -> Finding | None:
    """The finding for a batch whose tensors are on several devices."""
    devices: dict[str, str] = {}
    for path, tensor in tensors(batch):
        devices.setdefault(str(tensor.device), path)
    if len(devices) < 2:
        return None
    shown = " and ".join(f"`{path}` on {device}" for device, path in devices.items())
    return warn(
        f"a batch holds {shown}: a step that moves only some of them raises",
        hint="return tensors of one device, the CPU, from the data set",
    )
