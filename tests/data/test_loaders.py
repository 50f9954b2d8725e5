"""The loader behind a loader, and its twins."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from debugkit.data.loaders import (
    deciding_sampler,
    draw,
    fetching,
    inner_loader,
    is_map_style,
    places,
    stop_workers,
    whole_item,
    with_set_epoch,
)


class Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, place: int) -> int:
        return place


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


class Wrapper:
    def __init__(self, *loaders: Any) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


def test_the_loader_inside_a_wrapper() -> None:
    loader = DataLoader(Numbers(), batch_size=4)
    assert inner_loader(loader) is loader
    assert inner_loader(Wrapper(loader)) is loader
    assert inner_loader(Wrapper(loader, loader)) is loader
    assert inner_loader(Wrapper(loader, DataLoader(Numbers()))) is None
    assert inner_loader([torch.zeros(2)]) is None
    assert inner_loader(Numbers()) is None


def test_styles() -> None:
    assert is_map_style(DataLoader(Numbers()))
    assert not is_map_style(DataLoader(Stream()))


def test_draws_are_bounded() -> None:
    loader = DataLoader(Numbers(), batch_size=4)
    drawn, finished = draw(loader, 100)
    assert finished
    assert places(drawn) == list(range(20))
    drawn, finished = draw(loader, 8)
    assert not finished
    assert drawn == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert draw(DataLoader(Numbers(), batch_size=None), 100)[0] == list(range(20))
    assert places([["a", "b"]]) is None


def test_what_decides_on_the_order() -> None:
    assert isinstance(deciding_sampler(DataLoader(Numbers(), shuffle=True)), RandomSampler)
    assert isinstance(deciding_sampler(DataLoader(Numbers())), SequentialSampler)
    plain = BatchSampler(RandomSampler(Numbers()), 4, False)
    assert isinstance(deciding_sampler(DataLoader(Numbers(), batch_sampler=plain)), RandomSampler)
    own: Any = [[0, 1], [2, 3]]
    assert deciding_sampler(DataLoader(Numbers(), batch_sampler=own)) is own


def test_a_twin_fetches_what_it_is_told() -> None:
    loader = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
    for workers in (0, 2):
        twin = fetching(loader, [[3, 5], [7]], workers=workers)
        for _ in range(2):
            assert [batch.tolist() for batch in twin] == [[3, 5], [7]]
        stop_workers(twin)
    assert loader._iterator is None
    one_by_one = DataLoader(Numbers(), batch_size=None)
    assert [*fetching(one_by_one, [4, 2], workers=0, collate=str)] == ["4", "2"]


def test_what_has_to_be_told_the_epoch() -> None:
    sampler = DistributedSampler(Numbers(), 2, 0)  # type: ignore[var-annotated]
    assert with_set_epoch(DataLoader(Numbers(), sampler=sampler)) == [sampler]
    assert with_set_epoch(DataLoader(Numbers()), None) == []


def test_an_item_has_the_columns_that_the_trainer_left_out() -> None:
    whole = [{"ids": [1, place], "text": f"text {place}"} for place in range(4)]
    seen = [{"ids": row["ids"]} for row in whole]
    target = SimpleNamespace(training_step=SimpleNamespace(train_dataset=whole))
    assert whole_item(target, seen, 2) == whole[2]
    moved = SimpleNamespace(training_step=SimpleNamespace(train_dataset=whole[::-1]))
    assert whole_item(moved, seen, 2) == seen[2]
    assert whole_item(SimpleNamespace(training_step=None), seen, 2) == seen[2]
