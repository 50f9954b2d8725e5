"""Optimizers and schedulers rehearsed on copies."""

from __future__ import annotations

import copy

import pytest
import torch

from debugkit.trials.schedule import peak_rates, twin


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return torch.optim.AdamW([{"params": [first], "lr": 1e-2}, {"params": [second], "lr": 1e-3}])


def test_a_twin_steps_the_same_parameters_with_its_own_state(optimizer: torch.optim.Optimizer) -> None:
    double = twin(optimizer)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(2)
    double.step()
    assert parameter[0] < 1
    assert not optimizer.state
    assert double.state


def test_a_twin_drops_groups_that_end_up_empty(optimizer: torch.optim.Optimizer) -> None:
    kept = optimizer.param_groups[1]["params"][0]
    assert [group["lr"] for group in twin(optimizer, {id(kept)}).param_groups] == [1e-3]


def test_the_peak_of_a_warm_up_is_found(optimizer: torch.optim.Optimizer) -> None:
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, 1.0))
    state = copy.deepcopy(scheduler.state_dict())
    assert peak_rates(optimizer, scheduler, 50) == pytest.approx([1e-2, 1e-3])
    assert scheduler.state_dict() == state
    assert optimizer.param_groups[0]["lr"] == 0


def test_without_a_scheduler_the_current_rates_count(optimizer: torch.optim.Optimizer) -> None:
    assert peak_rates(optimizer, None, None) == [1e-2, 1e-3]


def test_a_scheduler_that_needs_a_metric_gives_the_known_rates(optimizer: torch.optim.Optimizer) -> None:
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert peak_rates(optimizer, scheduler, 50) == [1e-2, 1e-3]


def test_an_optimizer_that_chooses_its_own_rate_has_none(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = None
    assert peak_rates(optimizer, None, None) == [0.0, 1e-3]
