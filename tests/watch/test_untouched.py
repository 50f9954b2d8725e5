"""A watched program does, bit for bit, what it does without; torch is as before afterwards."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import debugkit
from debugkit.testing import blobs, mlp
from debugkit.watch.session import Watch

OWNERS = [
    (torch.nn.Module, "__call__"),
    (torch.nn.Module, "state_dict"),
    (torch.nn.Module, "load_state_dict"),
    (torch.autograd, "_engine_run_backward"),
    (torch.utils.data.DataLoader, "__iter__"),
    (torch.utils.data.DataLoader, "__init__"),
    (torch.optim.Optimizer, "__init__"),
    (torch.optim.lr_scheduler.LRScheduler, "__init__"),
    (torch.optim.lr_scheduler.SequentialLR, "__init__"),
    (torch.amp.grad_scaler.GradScaler, "step"),
    (torch.nn.utils.clip_grad, "_clip_grads_with_norm_"),
    (torch, "save"),
]


def test_torch_is_as_before_also_after_an_error() -> None:
    before = [vars(owner)[name] for owner, name in OWNERS]
    during: list[object] = []

    def train() -> None:
        during.extend(vars(owner)[name] for owner, name in OWNERS)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), debugkit.watch():
        train()
    assert not any(now is was for now, was in zip(during, before, strict=True))
    assert [vars(owner)[name] for owner, name in OWNERS] == before


def test_watched_objects_can_be_copied_pickled_and_saved(tmp_path: Path) -> None:
    model, loader = mlp(), blobs()
    with debugkit.watch(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        twin = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.step()
        schedule.step()
        twin[0].weight.data.zero_()
        assert not torch.equal(model(x), again(x))
        assert not torch.equal(model(x), twin(x))
    assert "forward" not in vars(model)
    assert "step" not in vars(optimizer) or hasattr(optimizer.step, "_wrapped_by_lr_sched")


def test_a_fault_of_the_watch_ends_the_watch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(optimizers=[optimizer], config={}) as watch:
        monkeypatch.setattr(watch.recorder.data, "backward", lambda: 1 / 0)
        for x, y in blobs():
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert any("watching ended early: ZeroDivisionError" in notice for notice in watch.report.notices)


def test_what_a_gate_measures_is_no_training() -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with debugkit.watch(model, optimizer=optimizer, config={}) as watch:
        target = debugkit.Target(
            model, loader, loss_fn=torch.nn.functional.cross_entropy, optimizer=optimizer
        )
        debugkit.gate(target, config={"select": ["loss", "overfit-samples"]})
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert watch.record.steps == watch.record.backwards == len(loader)
    assert len(watch.record.optimizers) == 1
    assert watch.report.status == "pass"


def test_a_step_within_a_step_counts_once() -> None:
    class Decayed(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.mul_(0.99)
            return super().step(closure)

    model, loader = mlp(), blobs()
    torch.optim.Adam(model.parameters())
    with debugkit.watch(model, config={}, preflight=False) as watch:
        optimizer = Decayed(model.parameters())
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert watch.record.steps == len(loader)
    assert watch.record.optimizers[-1].steps == len(loader)


def test_losses_are_compiled_scripted_and_pickled_as_without() -> None:
    class Scored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.model(x), y)

    model, (x, y) = Scored(), next(iter(blobs()))
    expected = model(x, y)
    with debugkit.watch():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            scripted = torch.jit.script(model)
        assert torch.equal(compiled(x, y), expected)
        assert torch.equal(scripted(x, y), expected)
        assert "cross_entropy" in str(torch.fx.symbolic_trace(model).graph)
        assert (
            pickle.loads(pickle.dumps(torch.nn.functional.cross_entropy)) is torch.nn.functional.cross_entropy
        )
