"""The wider look at a data set that the scan does not see to its end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

from debugkit import Target
from debugkit.probes.samples import Samples
from debugkit.probes.stream import TrainStream
from debugkit.probes.train_contents import TrainContents
from debugkit.sandbox import Sandbox
from debugkit.testing import mlp


def contents(loader: Any, *, scanned: int = 64, **options: Any) -> TrainContents:
    target = Target(mlp(), loader)
    with Sandbox(target) as sandbox:
        samples = Samples.collect(target, TrainStream.collect(target, sandbox), max_samples=scanned)
        return TrainContents.collect(target, sandbox, samples, **options)


def data(count: int) -> TensorDataset:
    return TensorDataset(torch.randn(count, 8), torch.arange(count) % 2)


def test_more_is_fetched_than_was_scanned() -> None:
    found = contents(DataLoader(data(500), batch_size=16, shuffle=True))
    assert found.rows.complete
    assert sorted(found.rows.indices or ()) == [*range(500)]
    assert found.scanned == "500 training samples"


def test_what_is_fetched_is_bounded() -> None:
    found = contents(DataLoader(data(2000), batch_size=16, shuffle=True), max_samples=320)
    assert found.rows.count == 320
    assert found.scanned == "320 of 2,000 training samples"


def test_only_what_the_sampler_draws_is_fetched() -> None:
    found = contents(DataLoader(data(500), batch_size=16, sampler=SubsetRandomSampler(range(300))))
    assert sorted(found.rows.indices or ()) == [*range(300)]


class Brittle(Dataset[Any]):
    def __init__(self) -> None:
        self.left = 80

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError("too many reads")
        return torch.randn(8), index % 2


@pytest.mark.parametrize(
    "loader", [DataLoader(Brittle(), batch_size=16), [(torch.randn(16, 8), torch.arange(16) % 2)] * 9]
)
def test_otherwise_the_scan_is_all_there_is(loader: Any) -> None:
    assert contents(loader).rows.count == 64
