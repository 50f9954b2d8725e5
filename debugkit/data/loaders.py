"""The ``DataLoader`` behind a loader: the order it draws in, and twins of it that fetch chosen samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

_DEEPEST = 3


def inner_loader(loader: Any) -> DataLoader[Any] | None:
    """The one ``DataLoader`` that fetches the samples, in wrappers such as accelerate's too.

    ``None`` where there is none, or several.
    """
    found = {id(one): one for one in _plain_loaders(loader, _DEEPEST)}
    return next(iter(found.values())) if len(found) == 1 else None


def is_map_style(loader: DataLoader[Any]) -> bool:
    """Whether samples are drawn by their place."""
    return not isinstance(loader.dataset, IterableDataset)


def draw(loader: DataLoader[Any], most: int) -> tuple[list[Any], bool]:
    """What the loader's sampler draws in one epoch, without fetching it.

    Args:
        loader: a loader over a map-style data set.
        most: how many samples to draw at most.

    Returns:
        One item per batch, with tensors as lists, and whether the epoch came to its end.
    """
    drawn: list[Any] = []
    count = 0
    for item in _sampler(loader):
        if count >= most:
            return drawn, False
        plain = _plain(item)
        drawn.append(plain)
        count += len(plain) if isinstance(plain, list) else 1
    return drawn, True


def deciding_sampler(loader: DataLoader[Any]) -> Any:
    """What decides on the order of the samples: the sampler, or a batch sampler of another kind than torch's."""
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler
    return batches.sampler if type(batches) is BatchSampler else batches


def places(drawn: Iterable[Any]) -> list[int] | None:
    """The samples of drawn batches in one list; ``None`` where they are no whole numbers."""
    flat = [place for item in drawn for place in (item if isinstance(item, list) else [item])]
    return flat if all(isinstance(place, int) for place in flat) else None


def fetching(
    loader: DataLoader[Any],
    items: list[Any],
    *,
    workers: int,
    collate: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    """A twin of a loader over a map-style data set that fetches the given items, one after the other.

    With workers, item ``i`` goes to worker ``i % workers``. The loader itself stays as it is.

    Args:
        loader: the loader.
        items: what its sampler would draw for each batch.
        workers: how many workers fetch; 0 fetches in this process.
        collate: what to call in place of its collate function.
    """
    twin = standing_alone(loader)
    settings: dict[str, Any] = {"num_workers": workers, "pin_memory": False, "in_order": True}
    settings["sampler" if loader.batch_sampler is None else "batch_sampler"] = items
    if collate is not None:
        settings["collate_fn"] = collate
    if not workers:
        settings |= {"persistent_workers": False, "prefetch_factor": None, "timeout": 0}
    twin.__dict__.update(settings)
    return twin


def standing_alone(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy of a loader that keeps workers of its own."""
    twin = copy.copy(loader)
    twin.__dict__["_iterator"] = None
    return twin


def whole_item(target: Any, dataset: Any, place: int) -> Any:
    """An item of the data set behind the training loader, with the columns that a trainer leaves out of its batches.

    Args:
        target: the target.
        dataset: the data set of its loader.
        place: the place in it.

    Returns:
        The trainer's own item where it says the same and more; the loader's otherwise.
    """
    item = dataset[place]
    given = getattr(target.training_step, "train_dataset", None)
    if (
        given is None
        or given is dataset
        or not isinstance(item, Mapping)
        or not hasattr(given, "__getitem__")
    ):
        return item
    whole = given[place] if len(given) == len(dataset) else None
    if not isinstance(whole, Mapping):
        return item
    return whole if all(key in whole and _plain(whole[key]) == _plain(item[key]) for key in item) else item


def stop_workers(loader: DataLoader[Any]) -> None:
    """End the workers that a loader of one's own keeps between epochs."""
    iterator, loader.__dict__["_iterator"] = loader.__dict__.get("_iterator"), None
    if (stop := getattr(iterator, "_shutdown_workers", None)) is not None:
        stop()


def with_set_epoch(*roots: Any) -> list[Any]:
    """The objects that have to be told the epoch, such as a ``DistributedSampler``."""
    found: dict[int, Any] = {}
    for root in roots:
        parts = [root, *(getattr(root, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
        parts += [getattr(part, "sampler", None) for part in parts[1:]]
        found |= {id(part): part for part in parts if callable(getattr(part, "set_epoch", None))}
    return list(found.values())


def _sampler(loader: DataLoader[Any]) -> Iterable[Any]:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _plain(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return item.tolist()
    if isinstance(item, (list, tuple)):
        inner = [_plain(part) for part in item]
        return inner if isinstance(item, list) else tuple(inner)
    return item.item() if hasattr(item, "item") and callable(item.item) else item


def _plain_loaders(value: Any, depth: int) -> Iterator[DataLoader[Any]]:
    if issubclass(type(value), DataLoader) and type(value).__iter__ is DataLoader.__iter__:
        yield value
        return
    if not depth or isinstance(value, (Dataset, torch.Tensor, torch.nn.Module, type, str)):
        return
    attributes = getattr(value, "__dict__", None)
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    for part in (*islice(parts, 16), *(attributes or {}).values()):
        yield from _plain_loaders(part, depth - 1)
