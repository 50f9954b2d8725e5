"""The cost of the default list, counted in passes of the user's batch."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from debugkit import Target

PATH = Path(__file__).parents[1] / "benchmarks" / "passes.py"


@pytest.fixture(scope="module")
def passes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("passes", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["passes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize("name", ["encoder", "decoder", "cnn"])
def test_the_default_list_stays_cheap(passes: ModuleType, name: str, batch_size: int) -> None:
    counter = passes.count(passes.TARGETS[name](batch_size), {"max-cost": "backward"})
    assert 3 <= counter.total.cost <= passes.BOUND, passes.table(counter)


def test_passes_are_counted_by_size_and_kind(passes: ModuleType) -> None:
    model = torch.nn.Linear(3, 2)
    counter = passes.Counter(batch_values=12)
    counter.attach(model)
    model(torch.ones(4, 3)).sum().backward()
    model(torch.ones(2, 3))
    total = counter.total
    assert (total.calls, total.forward, total.backward, total.cost) == (2, 1.5, 1.0, 3.5)


def test_a_gradient_that_ends_at_the_outputs_is_no_backward_pass(passes: ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    counter = passes.Counter(batch_values=12)
    counter.attach(model)
    outputs = model(torch.ones(4, 3))
    torch.autograd.grad(outputs.sum(), outputs, retain_graph=True)
    assert counter.total.backward == 0
    torch.autograd.grad(outputs.sum(), [model.get_parameter("1.weight")], retain_graph=True)
    assert 0 < counter.total.backward < 1


def test_a_cache_is_no_part_of_the_batch(passes: ModuleType) -> None:
    class Cached(torch.nn.Module):
        def forward(self, ids: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
            return ids + past.sum()

    model = Cached()
    counter = passes.Counter(batch_values=12, names=frozenset({"ids"}))
    counter.attach(model)
    model(ids=torch.ones(1, 3), past=torch.ones(1, 3, 32))
    assert counter.total.forward == 0.25


def test_data_costs_no_pass(passes: ModuleType) -> None:
    target: Target = passes.TARGETS["cnn"]()
    assert passes.count(target, {"max-cost": "data"}).total.calls == 0
