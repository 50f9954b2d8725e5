"""The optimizer as evidence: its tensors, its schedule, its traits, one real step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from debugkit import Target, Unavailable
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.optimizer_parameters import OptimizerParameters
from debugkit.probes.optimizer_step import OptimizerStep
from debugkit.probes.optimizer_traits import OptimizerTraits
from debugkit.probes.schedule_rehearsal import ScheduleRehearsal
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp

CE = nn.CrossEntropyLoss()


def measure(target: Target, kind: Any) -> Any:
    with Sandbox(target) as sandbox:
        return Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(kind)


def with_optimizer(make: Callable[[Any], Any], **more: Any) -> Target:
    model = mlp()
    return Target(model, blobs(), CE, optimizer=make(model.parameters()), **more)


@pytest.mark.parametrize(
    ("make", "scaling", "coupled", "decoupled"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1), "proportional", False, False),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "normalised", True, False),
        (lambda p: torch.optim.AdamW(p), "normalised", False, True),
        (
            lambda p: torch.optim.Adam(p, weight_decay=0.1, decoupled_weight_decay=True),
            "normalised",
            False,
            True,
        ),
        (lambda p: torch.optim.RMSprop(p, weight_decay=0.1), "normalised", True, False),
        (lambda p: torch.optim.RAdam(p), "normalised", False, False),
        (lambda p: torch.optim.Rprop(p), "other", False, False),
    ],
)
def test_traits_are_tried_out(make: Any, scaling: str, coupled: bool, decoupled: bool) -> None:
    traits = measure(with_optimizer(make), OptimizerTraits)
    assert (traits.scaling, traits.couples_decay, traits.decouples_decay) == (
        (scaling,),
        (coupled,),
        (decoupled,),
    )


def test_a_step_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(Unavailable, match="closure"):
        measure(with_optimizer(torch.optim.LBFGS), OptimizerStep)


def test_a_step_is_the_one_that_training_takes() -> None:
    target = with_optimizer(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    moves = measure(target, OptimizerStep).moves
    assert set(moves) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for move in moves.values():
        assert move.update == pytest.approx(0.1 * move.gradient, rel=1e-4)


def test_momentum_that_is_there_counts() -> None:
    target = with_optimizer(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    for parameter in target.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    target.optimizer.step()
    assert all(move.update > 0.08 for move in measure(target, OptimizerStep).moves.values())


def test_nothing_changes() -> None:
    target = with_optimizer(lambda p: torch.optim.AdamW(p, 1e-2), training_steps=50)
    scheduler = lr_scheduler.OneCycleLR(target.optimizer, 1e-2, total_steps=50)
    target = Target(target.model, target.train_loader, CE, optimizer=target.optimizer, scheduler=scheduler)
    before = [p.detach().clone() for p in target.model.parameters()]
    rate, state = target.optimizer.param_groups[0]["lr"], scheduler.state_dict()["_step_count"]
    measure(target, OptimizerStep)
    assert all(torch.equal(a, b) for a, b in zip(before, target.model.parameters(), strict=True))
    assert not target.optimizer.state
    assert (target.optimizer.param_groups[0]["lr"], scheduler.state_dict()["_step_count"]) == (rate, state)


def test_a_warm_up_from_zero_is_stepped_at_its_peak() -> None:
    target = with_optimizer(lambda p: torch.optim.SGD(p, 0.2), training_steps=100)
    scheduler = lr_scheduler.LambdaLR(target.optimizer, lambda step: min(1.0, step / 10))
    target = Target(target.model, target.train_loader, CE, optimizer=target.optimizer, scheduler=scheduler)
    assert {move.rate for move in measure(target, OptimizerStep).moves.values()} == {0.2}


@pytest.mark.parametrize("scheduler", [lambda o: lr_scheduler.ReduceLROnPlateau(o)])
def test_a_schedule_that_needs_a_metric_is_not_rehearsed(scheduler: Any) -> None:
    target = with_optimizer(lambda p: torch.optim.SGD(p, 0.2))
    target = Target(
        target.model,
        target.train_loader,
        CE,
        optimizer=target.optimizer,
        scheduler=scheduler(target.optimizer),
    )
    rehearsal = measure(target, ScheduleRehearsal)
    assert rehearsal.curve.steps == 0
    assert rehearsal.peaks == (0.2,)


def test_a_sequence_of_schedules_is_rehearsed() -> None:
    target = with_optimizer(lambda p: torch.optim.SGD(p, 0.2))
    warm_up = lr_scheduler.LinearLR(target.optimizer, 0.1, total_iters=10)
    cosine = lr_scheduler.CosineAnnealingLR(target.optimizer, 90)
    scheduler = lr_scheduler.SequentialLR(target.optimizer, [warm_up, cosine], [10])
    target = Target(
        target.model,
        target.train_loader,
        CE,
        optimizer=target.optimizer,
        scheduler=scheduler,
        training_steps=100,
    )
    rates = measure(target, ScheduleRehearsal).curve.rates[0]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates[:100]) == pytest.approx(0.2)
    assert rates[99] < 1e-3


def test_tensors_are_matched_by_memory() -> None:
    flat = nn.Parameter(torch.randn(20))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1, bias=False))
    model[0].weight.data = flat.data[:16].view(4, 4)
    model[0].bias.data = flat.data[16:]
    model[1].requires_grad_(False)
    held = measure(Target(model, optimizer=torch.optim.SGD([flat], 0.1)), OptimizerParameters)
    assert held.missing == ()


def test_what_another_optimizer_holds_is_known() -> None:
    model = nn.ModuleDict({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)})
    second = torch.optim.Adam(model["critic"].parameters())
    held = measure(
        Target(model, optimizer=torch.optim.Adam(model["generator"].parameters())), OptimizerParameters
    )
    assert held.elsewhere == {"critic.weight", "critic.bias"} == set(held.missing)
    assert second.param_groups


def test_parameters_of_the_training_step_are_not_stale() -> None:
    model, scale = mlp(), nn.Parameter(torch.ones(()))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(scale * model(batch[0]), batch[1])

    optimizer = torch.optim.Adam([*model.parameters(), scale])
    held = measure(Target(model, blobs(), training_step=step, optimizer=optimizer), OptimizerParameters)
    assert (held.orphans, held.extra) == ((), 1)


def test_copies_in_single_precision_are_recognised() -> None:
    model = mlp().bfloat16()
    optimizer = torch.optim.Adam([p.detach().float().requires_grad_() for p in model.parameters()])
    assert measure(Target(model, optimizer=optimizer), OptimizerParameters).copies


@pytest.mark.parametrize(
    "target",
    [
        Target(nn.Identity(), optimizer=torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1)),
        Target(
            nn.Linear(2, 2, device="meta"),
            optimizer=torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1),
        ),
        Target(lazy := nn.LazyLinear(2), optimizer=torch.optim.SGD(lazy.parameters(), 0.1)),
        Target(
            odd := nn.Linear(2, 2, dtype=torch.complex64), optimizer=torch.optim.SGD(odd.parameters(), 0.1)
        ),
    ],
    ids=["empty", "meta", "lazy", "complex"],
)
def test_odd_models_do_not_crash(target: Target) -> None:
    measure(target, OptimizerParameters)
    measure(target, OptimizerTraits)
    measure(target, ScheduleRehearsal)
