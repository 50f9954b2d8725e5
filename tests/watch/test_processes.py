"""A model that other processes train too, or whose parameters are sharded, is not run out of turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import debugkit
from debugkit.testing import blobs, mlp
from debugkit.watch.processes import why_not_alone


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_in_one_process_may_run() -> None:
    assert why_not_alone(mlp()) is None


def test_several_processes_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert why_not_alone(mlp()) == "4 processes train together"


@pytest.mark.usefixtures("_one_process")
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_model_trains_on_as_without_a_watch() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    losses: list[list[float]] = []
    for watched in (True, False):
        torch.manual_seed(0)
        model, loader = mlp(), blobs()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch = debugkit.watch(model, optimizer=optimizer, config={})
        losses.append([])
        if watched:
            watch.__enter__()
        for x, y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        if watched:
            watch.close()
            assert any("the model's parameters are sharded" in notice for notice in watch.report.notices)
            assert watch.report.exit_code("warn") == 0
    assert losses[0] == losses[1]
