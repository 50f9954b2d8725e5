"""finite-weights beyond its own examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import blobs, mlp


def judge(target: Target | nn.Module) -> Result:
    target = target if isinstance(target, Target) else Target(target)
    return debugkit.run(target, select="finite-weights")["finite-weights"]


def with_buffer(values: torch.Tensor, **options: Any) -> nn.Module:
    model = mlp()
    model.register_buffer("extra", values, **options)
    return model


@pytest.mark.parametrize(
    "values",
    [
        torch.full((6, 6), float("-inf")).triu(1),
        torch.full((6, 6), float("-inf")).triu(1) - torch.arange(6).float(),
        torch.tensor([0.0, float("-inf"), 0.0]),
        torch.tensor(float("inf")),
        torch.full((4,), float("-inf")),
        torch.zeros(0),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.int8),
        torch.zeros(3, dtype=torch.float8_e4m3fn),
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=str,
)
def test_masks_bounds_and_odd_tensors_are_quiet(values: torch.Tensor) -> None:
    assert judge(with_buffer(values)).status == "pass"
    assert judge(with_buffer(values, persistent=False)).status == "pass"


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([0.0, 1.0, float("nan")]),
        torch.tensor([0.5, 1.0, 2.0, float("-inf")]),
        torch.tensor([0.5, float("inf")]),
        torch.tensor([1.0, complex(0.0, float("nan"))]),
        torch.tensor([[0.0, float("nan")], [1.0, 0.0]]).to_sparse(),
        torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2),
    ],
    ids=str,
)
def test_other_values_fail(values: torch.Tensor) -> None:
    result = judge(with_buffer(values))
    assert [f.where for f in result.findings if f.level == "fail"] == ["extra"]


def test_the_first_index_is_told() -> None:
    model = nn.Linear(5, 7)
    with torch.no_grad():
        model.weight[2, 3] = float("inf")
        model.weight[6, 0] = float("nan")
    (finding,) = judge(model).findings
    assert "[2, 3]" in finding.message
    assert finding.measured == {"nan": 1, "infinite": 1, "values": 35}


def test_a_tied_tensor_is_told_once() -> None:
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    with torch.no_grad():
        head.weight[0, 0] = float("nan")
    assert len(judge(nn.ModuleList([embedding, head])).findings) == 1


def test_transitions_that_are_ruled_out_are_a_note() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.transitions = nn.Parameter(torch.zeros(2, 2))
            self.transitions.data[0, 1] = float("-inf")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.body(x)[:, :, None] + self.transitions).logsumexp(1)

    result = judge(Target(Chain(), blobs(), nn.CrossEntropyLoss()))
    assert result.status == "pass"
    assert any("ruled out" in finding.message for finding in result.findings)


def test_half_precision_is_not_denormal() -> None:
    assert judge(nn.Linear(64, 64).half().requires_grad_(False)).status == "pass"
    model = nn.Linear(64, 64).half()
    model.weight.data.mul_(1e-4)
    assert judge(model).status == "pass"


def test_nothing_to_read_is_a_skip() -> None:
    assert judge(nn.LazyLinear(3)).status == "skip"
    assert judge(nn.Identity()).status == "skip"
    assert judge(nn.Linear(3, 3, device="meta")).status == "skip"
