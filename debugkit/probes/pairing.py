"""Whether the batches give each input its own label: held against the data set behind the loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit.data.columns import columns_of
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.target import Target

Row = tuple[dict[str, Any], dict[str, Any]]
"""The inputs and the labels of one sample, by their place in the batch."""


@dataclass(frozen=True)
class Pairing:
    """The first batch beside the same samples collated one by one.

    Attributes:
        compared: how many inputs of the batch were found again among the single samples.
        swapped: ``(sample, other)`` for each input whose label in the batch is not its own: its name, and the
            name of a sample of the batch that has that label, where there is just one.
    """

    cost: ClassVar[Cost] = "data"
    compared: int
    swapped: tuple[tuple[str, str | None], ...]

    @staticmethod
    def collect(
        target: Target,
        samples: Samples,
        batches: Batches,
        *,
        max_samples: Annotated[
            int, Field(ge=2, description="samples of the first batch to fetch again")
        ] = 64,
    ) -> Pairing:
        """Fetch the samples of the first batch again, one by one.

        Raises:
            Unavailable: the loader does not tell its samples, or they can't be fetched again.
        """
        loader, indices = target.train_loader, samples.rows.indices
        if not isinstance(loader, DataLoader) or indices is None:
            raise Unavailable("the loader does not tell which samples of its data set it draws")
        size = samples.rows.batch_sizes[0]
        if not 2 <= size <= max_samples:
            raise Unavailable(f"the first batch has {size} samples; 2 to {max_samples} are fetched again")
        rows, singles = _rows(batches.first, size), _singles(loader, indices[:size])
        if not rows or len(singles) != size:
            raise Unavailable("the single samples do not have the shape of the batch's")
        found = _compare(rows, singles, [samples.rows.name(number) for number in range(size)])
        if found.swapped:
            again = zip(singles, _singles(loader, indices[:size]), strict=True)
            if not all(_same(one[1], other[1]) for one, other in again):
                raise Unavailable("the data set gives a sample another label each time")
        return found


def _singles(loader: DataLoader[Any], indices: Sequence[int]) -> list[Row]:
    """Samples collated one by one."""
    try:
        return [row for index in indices for row in _rows(loader.collate_fn([loader.dataset[index]]), 1)]
    except Exception as error:  # a data set or a collate function may need the whole batch
        raise Unavailable(f"single samples can't be fetched and collated: {type(error).__name__}") from error


def _rows(batch: Any, size: int) -> list[Row]:
    """The samples of a batch; nothing where it has no labels, or is not of this size."""
    found = columns_of(batch)
    columns: dict[str, Any] = {**found.tensors, **found.texts}
    if found.size != size or not found.labels or set(columns) <= found.labels:
        return []
    return [
        (
            {path: values[row] for path, values in columns.items() if path not in found.labels},
            {path: values[row] for path, values in columns.items() if path in found.labels},
        )
        for row in range(size)
    ]


def _compare(rows: list[Row], singles: list[Row], names: list[str]) -> Pairing:
    compared, swapped = 0, []
    taken: list[int] = []
    for inputs, labels in rows:
        found = [number for number, single in enumerate(singles) if _same(inputs, single[0])]
        owners = [number for number, single in enumerate(singles) if _same(labels, single[1])]
        taken.append(len(owners))
        if len(found) != 1:
            continue
        compared += 1
        if found[0] not in owners:
            swapped.append((names[found[0]], names[owners[0]] if len(owners) == 1 else None))
    return Pairing(compared, tuple(swapped) if all(taken) else ())


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_alike(one[path], other[path]) for path in one)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same but for padding."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return bool(type(one) is type(other) and one == other)
    one, other = one.cpu(), other.cpu()
    if one.shape == other.shape:
        return torch.equal(one, other)
    if one.ndim != other.ndim or not one.ndim or one.shape[1:] != other.shape[1:]:
        return False
    short, long = sorted((one, other), key=len)
    more = len(long) - len(short)
    ends = ((long[: len(short)], long[len(short) :]), (long[more:], long[:more]))
    return any(torch.equal(content, short) and bool((rest == rest[:1]).all()) for content, rest in ends)
