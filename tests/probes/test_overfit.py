"""Short training runs on a few samples, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.overfit import OverfitRuns
from debugkit.registry import Registry, load
from debugkit.report import Result
from debugkit.runner import Run
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp

CE = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


def runs_of(target: Target) -> OverfitRuns:
    with Sandbox(target) as sandbox:
        return Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(OverfitRuns)


def judged(target: Target, registry: Registry, *settings: str) -> Result:
    run = Run(target, select="overfit-samples", config={}, registry=registry, settings=settings)
    return run.execute()["overfit-samples"]


def classifier(make: Callable[[Any], torch.optim.Optimizer]) -> Target:
    model = mlp()
    return Target(model, blobs(), CE, optimizer=make(model.parameters()))


def test_a_healthy_model_is_done_early() -> None:
    runs = runs_of(classifier(lambda p: torch.optim.Adam(p, 1e-2)))
    assert runs.memorised is not None
    assert len(runs.runs) == 1
    assert runs.own is not None
    assert runs.own.learns
    assert runs.repair is None
    assert (runs.covered, runs.tensors) == (4, 4)
    assert runs.call is not None
    assert runs.call[0] == "cross_entropy"


def test_the_model_stays_as_it_was() -> None:
    target = classifier(lambda p: torch.optim.Adam(p, 1e-2))
    before = [p.detach().clone() for p in target.model.parameters()]
    runs_of(target)
    assert all(map(torch.equal, before, target.model.parameters()))
    assert not target.optimizer.state


def test_sparse_gradients_are_trained_through() -> None:
    ids = torch.arange(64).reshape(16, 4)
    model = nn.Sequential(nn.Embedding(64, 8, sparse=True), nn.Flatten(), nn.Linear(32, 2))
    loader = DataLoader(TensorDataset(ids, torch.arange(16) % 2), 16)
    runs = runs_of(Target(model, loader, CE, optimizer=torch.optim.SGD(model.parameters(), 0.1)))
    assert runs.memorised is not None
    assert runs.own is not None
    assert runs.own.learns


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, weight_decay=5.0), "weight_decay"),
        (lambda p: torch.optim.AdamW(p, 1e-3, maximize=True), "maximize"),
        (lambda p: torch.optim.SGD(p, 100.0), "lr"),
    ],
)
def test_the_setting_that_keeps_it_from_learning_is_found(
    make: Callable[[Any], torch.optim.Optimizer], setting: str
) -> None:
    runs = runs_of(classifier(make))
    assert runs.repair is not None
    assert runs.repair.setting == setting


@pytest.mark.parametrize("rate", [2e-5, 1e-4, 1e-3])
def test_a_small_rate_is_only_slow(rate: float, registry: Registry) -> None:
    y = (torch.arange(64) % 8 == 0).long()
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 3 * y
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    result = judged(Target(model, DataLoader(TensorDataset(x, y), 16), CE, optimizer=optimizer), registry)
    assert result.status == "pass"


def test_an_optimizer_that_needs_a_closure_is_noted(registry: Registry) -> None:
    result = judged(classifier(lambda p: torch.optim.LBFGS(p)), registry)
    assert result.status == "pass"
    assert "was not tried" in result.findings[-1].message


def test_a_rate_that_warms_up_is_tried_with_a_warm_up() -> None:
    target = classifier(lambda p: torch.optim.SGD(p, 0.1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(target.optimizer, lambda step: min(1.0, step / 50))
    runs = runs_of(
        Target(target.model, target.train_loader, CE, optimizer=target.optimizer, scheduler=scheduler)
    )
    assert runs.own is not None
    assert runs.own.learns


def test_no_time_is_no_verdict(registry: Registry) -> None:
    target = Target(nn.Sequential(mlp(), nn.Tanh()), blobs(), lambda o, y: F.mse_loss(o[:, 0], y + 5.0))
    assert judged(target, registry, "overfit-runs.max-seconds=1e-9").status == "skip"


def test_a_falling_loss_without_a_floor_is_not_judged(registry: Registry) -> None:
    target = Target(mlp(), blobs(), lambda o, y: o.mean() - 1)
    result = judged(target, registry, "overfit-runs.max-steps=20")
    assert result.status == "skip"
    assert "no floor" in (result.reason or "")


def test_one_mistake_is_reported_once(registry: Registry) -> None:
    model = nn.Sequential(mlp(classes=1), nn.Sigmoid())
    target = Target(
        model, blobs(), lambda o, y: F.binary_cross_entropy_with_logits(o, (y[:, None] > 0).float())
    )
    result = judged(target, registry)
    assert result.status in ("pass", "skip")


def test_rare_positives_in_maps_are_not_judged_by_errors(registry: Registry) -> None:
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(16, 1, 8, 8)
    y[3, 0, 4, 4] = 1
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    target = Target(model, DataLoader(TensorDataset(x, y), 16), nn.BCEWithLogitsLoss())
    assert judged(target, registry).status in ("pass", "skip")


def test_targets_that_are_all_the_same_are_not_judged(registry: Registry) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, torch.full((64, 1), 2.5)), batch_size=16)
    target = Target(mlp(classes=1), loader, nn.MSELoss())
    result = Run(target, select="overfit-samples", config={}, registry=registry).execute()["overfit-samples"]
    assert result.status == "skip"
    assert "all the same" in (result.reason or "")
