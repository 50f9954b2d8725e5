"""Where samples come from: places of data sets behind subsets, concatenations and samplers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from debugkit.data.provenance import origins, same_store, sources

DATA = TensorDataset(torch.arange(40.0))


def test_subsets_and_concatenations_are_followed() -> None:
    other = TensorDataset(torch.arange(5.0))
    joined = ConcatDataset([Subset(Subset(DATA, range(10, 30)), [0, 2, 19]), other])
    found = sources(DataLoader(Subset(joined, [1, 2, 4]), shuffle=True))
    assert found is not None
    assert [(source.dataset, source.places.tolist()) for source in found] == [(DATA, [12, 29]), (other, [1])]


def test_samplers_of_torch_say_what_they_draw() -> None:
    found = sources(DataLoader(DATA, sampler=SubsetRandomSampler([3, 1])))
    assert found is not None
    assert found[0].places.tolist() == [3, 1]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        yield 1


@pytest.mark.parametrize("loader", [None, [1, 2], DataLoader(Stream()), DataLoader(DATA, sampler=[1, 2])])
def test_other_loaders_do_not(loader: Any) -> None:
    assert sources(loader) is None


def test_places_behind_subsets() -> None:
    nested = Subset(Subset(DATA, [5, 5, 7]), [2, 0, 1])
    assert origins(nested, np.array([0, 1, 2])).tolist() == [7, 5, 5]


class Archive(Dataset[Any]):
    def __init__(self, data: Any, transform: Any, split: str = "train") -> None:
        self.data, self.transform, self.split = data, transform, split

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.data[index])


def test_equal_stores_may_differ_in_transform_only() -> None:
    data = torch.arange(10.0)
    one = Archive(data, lambda x: x)
    assert same_store(one, Archive(data.clone(), lambda x: x + 1))
    assert not same_store(one, Archive(data + 1, lambda x: x))
    assert not same_store(one, Archive(data, lambda x: x, "test"))
    assert not same_store(Archive(None, lambda x: x), Archive(None, lambda x: x))
    assert not same_store(Archive(Subset(DATA, range(10)), None), Archive(Subset(DATA, range(10, 20)), None))
