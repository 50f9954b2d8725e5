"""Healthy optimizers, schedules and frozen parts that have to stay quiet, and what is told of them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from debugkit import Target
from debugkit.registry import Registry
from debugkit.report import Report
from debugkit.runner import Run
from debugkit.testing import blobs, mlp

CE = nn.CrossEntropyLoss()
CHECKS = [
    "optimizer-coverage",
    "learning-rate",
    "schedule",
    "weight-decay",
    "update-ratio",
    "precision-loss",
    "frozen-parameters",
]


def run(target: Target, registry: Registry, select: Sequence[str] = CHECKS) -> Report:
    return Run(target, select=list(select), config={"max-cost": "backward"}, registry=registry).execute()


def quiet(target: Target, registry: Registry, select: Sequence[str] = CHECKS) -> Report:
    report = run(target, registry, select)
    loud = {
        r.check: r.reason or [f.message for f in r.active]
        for r in report.results
        if r.status not in ("pass", "skip")
    }
    assert not loud
    assert not report.notices
    return report


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(8, 8), mlp(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.generator(x)


def generate(model: Any, batch: Any) -> torch.Tensor:
    return F.softplus(-model.critic(model(batch[0]))).mean()


def test_a_generator_alone(registry: Registry) -> None:
    model = Gan()
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    report = quiet(Target(model, blobs(), training_step=generate, optimizer=optimizer), registry)
    assert "network of its own" in report["optimizer-coverage"].findings[0].message


def test_one_optimizer_per_part(registry: Registry) -> None:
    model = mlp()
    first, second = (torch.optim.Adam(model[i].parameters()) for i in (0, 2))
    quiet(Target(model, blobs(), CE, optimizer=first), registry)
    quiet(Target(model, blobs(), CE, optimizer=second), registry)


class Momentum(nn.Module):
    """An online network, and a slow copy that its forward updates."""

    def __init__(self) -> None:
        super().__init__()
        self.online = mlp()
        self.slow = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for slow, online in zip(self.slow.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(online, 0.1)
        return self.online(x) + 0.1 * self.slow(x).detach()


def test_a_moving_average_is_a_note(registry: Registry) -> None:
    model = Momentum()
    optimizer = torch.optim.AdamW(model.parameters())
    report = quiet(Target(model, blobs(), CE, optimizer=optimizer), registry)
    assert "own forward writes" in report["frozen-parameters"].findings[0].message


def test_gradients_left_from_an_earlier_phase(registry: Registry) -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, y = next(iter(loader))
    CE(model(x), y).backward()
    optimizer.step()
    model[0].requires_grad_(False)
    quiet(Target(model, loader, CE, optimizer=optimizer), registry)


def test_biases_alone_train(registry: Registry) -> None:
    model = nn.Sequential(*mlp(hidden=512))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    quiet(Target(model, blobs(), CE, optimizer=torch.optim.Adam(model.parameters(), 1e-3)), registry)


def test_a_head_alone_on_a_trained_body_is_a_warning(registry: Registry) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
    model[1].num_batches_tracked += 1000
    optimizer = torch.optim.Adam(model[3].parameters(), 1e-3)
    result = run(Target(model, blobs(), CE, optimizer=optimizer), registry)["optimizer-coverage"]
    assert result.status == "warn"
    assert "freeze it" in (result.active[0].hint or "")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
        lambda p: torch.optim.Adam(p, 1e-2),
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.LBFGS(p),
        lambda p: torch.optim.Adafactor(p),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3)),
    ],
)
def test_usual_optimizers(make: Any, registry: Registry) -> None:
    model = mlp(hidden=64)
    quiet(Target(model, blobs(), CE, optimizer=make(model.parameters()), training_steps=1000), registry)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 30),
        lambda o: lr_scheduler.MultiStepLR(o, [60, 80]),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 100),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 400),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10),
        lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=20),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=400),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=100),
        lambda o: lr_scheduler.ReduceLROnPlateau(o),
        lambda o: lr_scheduler.ConstantLR(o),
        lambda o: lr_scheduler.ExponentialLR(o, 0.99),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 40) * (1 - min(step, 400) / 400)),
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.StepLR(o, 40), lr_scheduler.ConstantLR(o)], optimizer=o
        ),
    ],
)
def test_usual_schedules_per_step_or_per_epoch(make: Any, registry: Registry) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    target = Target(model, blobs(), CE, optimizer=optimizer, scheduler=make(optimizer), training_steps=400)
    quiet(target, registry, ["schedule"])
    quiet(Target(model, blobs(), CE, optimizer=optimizer, scheduler=target.scheduler), registry, ["schedule"])


def test_a_run_in_the_middle(registry: Registry) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 400))
    for _ in range(300):
        optimizer.step()
        scheduler.step()
    report = quiet(
        Target(model, blobs(), CE, optimizer=optimizer, scheduler=scheduler, training_steps=400), registry
    )
    assert report["schedule"].findings[0].measured["peak"] == pytest.approx(2.5e-4)


def test_a_model_without_a_loader(registry: Registry) -> None:
    model = mlp()
    report = quiet(Target(model, optimizer=torch.optim.AdamW(model.parameters())), registry)
    assert report["optimizer-coverage"].status == report["learning-rate"].status == "pass"
    model.add_module("late", nn.Linear(2, 2))
    late = run(Target(model, optimizer=torch.optim.AdamW(list(model.parameters())[:4])), registry)
    assert late["optimizer-coverage"].status == "fail"


def test_without_an_optimizer_all_is_skipped(registry: Registry) -> None:
    report = run(Target(mlp(), blobs(), CE), registry)
    assert {result.status for result in report.results} == {"skip"}


def test_the_checks_leave_no_optimizer_behind(registry: Registry) -> None:
    model = mlp()
    target = Target(model, blobs(), CE, optimizer=torch.optim.AdamW(model[0].parameters()))
    first, second = (run(target, registry)["optimizer-coverage"].status for _ in range(2))
    assert first == second == "fail"
    gc.collect()
    held = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
    assert not [
        o
        for o in held
        if o is not target.optimizer
        and any(p is model[2].weight for g in o.param_groups for p in g["params"])
    ]
