"""Which values an operation can give."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from debugkit.tracing.reach import reach_of

Operation = Callable[[torch.Tensor], torch.Tensor]


def bounds(operation: Operation) -> tuple[float, float]:
    x = torch.randn(4, 3, requires_grad=True)
    result = operation(x)
    result.sum().backward()  # type: ignore[no-untyped-call]
    reach = reach_of(result.grad_fn)
    return reach.low, reach.high


@pytest.mark.parametrize(
    ("operation", "low", "high"),
    [
        (torch.sigmoid, 0, 1),
        (torch.tanh, -1, 1),
        (F.relu, 0, math.inf),
        (F.relu6, 0, 6),
        (F.softplus, 0, math.inf),
        (F.logsigmoid, -math.inf, 0),
        (lambda x: F.hardtanh(x, -2, 3), -2, 3),
        (lambda x: x.clamp(0, 1), 0, 1),
        (lambda x: x.clamp(min=-1), -1, math.inf),
        (lambda x: torch.tanh(x).clamp(min=-5), -1, 1),
        (lambda x: torch.softmax(x, -1)[:, 0].unsqueeze(1), 0, 1),
        (lambda x: torch.cat([torch.sigmoid(x), torch.tanh(x)], 1), -1, 1),
        (lambda x: torch.sigmoid(x) * torch.tanh(x), -1, 1),
        (lambda x: -torch.sigmoid(x), -1, 0),
        (lambda x: x**2, 0, math.inf),
        (F.elu, -1, math.inf),
        (lambda x: torch.sigmoid(x).mean(1), 0, 1),
    ],
)
def test_bounded_operations(operation: Operation, low: float, high: float) -> None:
    assert bounds(operation) == (low, high)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: 5 * torch.sigmoid(x),
        lambda x: torch.sigmoid(x) + 1,
        lambda x: x @ torch.ones(3, 2),
        lambda x: torch.cat([torch.sigmoid(x), x], 1),
        lambda x: torch.where(x > 0, torch.sigmoid(x), torch.tensor(7.0)),
        lambda x: x**3,
        F.leaky_relu,
    ],
)
def test_what_can_be_anything_stays_unbounded(operation: Operation) -> None:
    assert bounds(operation) == (-math.inf, math.inf)


def test_values_without_a_graph_are_unbounded() -> None:
    assert not reach_of(None).bounded
    assert reach_of(torch.sigmoid(torch.ones(2, requires_grad=True)).grad_fn).op == "sigmoid"


def test_long_chains_of_products_end() -> None:
    x = torch.tanh(torch.randn(3, requires_grad=True))
    for _ in range(2000):
        x = x * x
    assert not reach_of(x.grad_fn).bounded
