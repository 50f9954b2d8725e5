"""``debugkit.watch``: what it takes, what its report says, and when."""

from __future__ import annotations

import pytest
import torch

import debugkit
from debugkit import UsageError
from debugkit.testing import blobs, mlp
from debugkit.watch.session import Watch


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, clear: bool = True) -> None:
    for x, y in blobs():
        if clear:
            optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_the_report_of_a_block() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with debugkit.watch(model, optimizer=optimizer) as watch:
        train(model, optimizer, clear=False)
        assert watch.report["zero-grad"].status == "fail"
    assert watch.report.target == "Sequential"
    assert watch.report["zero-grad"].status == "fail"
    assert watch.report["optimizer-step"].status == "pass"
    assert {"loop", "weights", "loss"} <= {result.family for result in watch.report.results}


def test_only_what_is_selected_is_judged() -> None:
    with debugkit.watch(select="zero-grad", config={}) as watch:
        pass
    assert [(result.check, result.status) for result in watch.report.results] == [("zero-grad", "skip")]


def test_what_is_not_watched_is_not_seen() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(optimizers=[optimizer], steps=2, config={}) as watch:
        train(model, optimizer)
    train(model, optimizer, clear=False)
    assert watch.record.steps == 2
    assert watch.report["zero-grad"].status == "pass"


def test_findings_are_told_once_as_they_come() -> None:
    told: list[tuple[str, int]] = []
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(config={}, on_finding=lambda result, step: told.append((result.check, step))):
        for _ in range(4):
            train(model, optimizer, clear=False)
    assert told == [("zero-grad", 3)]


@pytest.mark.parametrize(
    "arguments", [{"model": 3}, {"model": [mlp(), "x"]}, {"optimizer": mlp()}, {"select": "zero-gard"}]
)
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"must be a torch|no check or family is called"):
        debugkit.watch(**arguments)  # type: ignore[arg-type]


def test_odd_models_and_optimizers_are_followed() -> None:
    sparse = torch.nn.Embedding(10, 4, sparse=True)
    odd = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))])
    one = torch.optim.SparseAdam(sparse.parameters(), lr=0.1)
    two = torch.optim.SGD(odd.parameters(), lr=torch.tensor(0.1))
    lazy = torch.nn.LazyLinear(1)
    with Watch(config={}) as watch:
        for _ in range(4):
            for each in (one, two):
                each.zero_grad()
            value = lazy(sparse(torch.tensor([1, 2]))).sum() + odd[0].abs().sum()
            value.backward()
            one.step()
            two.step()
        with torch.inference_mode():
            lazy(torch.randn(2, 4))
    assert watch.recorder.fault is None
    assert watch.record.steps == 8
    assert not [result for result in watch.report.results if result.status in ("fail", "warn", "error")]
