"""Which random masks are dropout made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.tracing.dropout import HandMadeDropout, drops

X = torch.ones(4, 6)
KEEP = 0.8


class Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.masks, self.seen = HandMadeDropout(), False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= self.masks.sees(func.__name__, args, result)
        return result


def watched(program: Callable[[torch.Tensor], object]) -> bool:
    with Watch() as watch:
        program(X)
    return watch.seen


def in_place(x: torch.Tensor) -> torch.Tensor:
    x = x * (torch.rand_like(x) < KEEP).float()
    x /= KEEP
    return x


DROPPING = {
    "product, then division": lambda x: x * (torch.rand(4, 1) > 1 - KEEP) / KEEP,
    "scaled mask": lambda x: x * x.new_empty(4, 1).bernoulli_(KEEP).div_(KEEP),
    "scaled input": lambda x: x.div(KEEP) * (KEEP + torch.rand(4, 1)).floor_(),
    "where": lambda x: torch.where(torch.rand_like(x) < 1 - KEEP, 0.0, x) * (1 / KEEP),
    "masked_fill": lambda x: x.masked_fill(torch.rand_like(x) > KEEP, 0.0) / KEEP,
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, KEEP)) / KEEP * x,
    "complement": lambda x: (1 - torch.bernoulli(torch.full_like(x, 1 - KEEP)).to(x)) * x / KEEP,
    "in place": in_place,
}

ON_PURPOSE = {
    "masked tokens": lambda x: torch.where(torch.rand(4, 6) < 0.15, 3.0, x) * 2,
    "dropped condition": lambda x: x * (torch.rand(4, 1) < 0.9) + 1,
    "noise": lambda x: x + 0.3 * torch.randn_like(x),
    "uniform noise": lambda x: (x + torch.rand_like(x) / 0.8) * 0.5,
    "a stochastic unit": lambda x: (torch.rand_like(x) < (x / 2).sigmoid()).float() * x / 0.8,
    "a sample of a distribution": lambda x: torch.bernoulli(torch.linspace(0, 1, 6).expand(4, 6)) * x / 0.8,
    "a shuffle": lambda x: x[torch.rand(4).argsort()] / 0.8,
    "another number": lambda x: x * (torch.rand(4, 1) < 0.9) / 0.7,
    "gumbel": lambda x: F.gumbel_softmax(x) * x / 0.8,
}


@pytest.mark.parametrize("program", DROPPING.values(), ids=DROPPING)
def test_a_scaled_random_mask_is_dropout(program: Callable[[torch.Tensor], object]) -> None:
    assert watched(program)


@pytest.mark.parametrize("program", ON_PURPOSE.values(), ids=ON_PURPOSE)
def test_other_randomness_is_not(program: Callable[[torch.Tensor], object]) -> None:
    assert not watched(program)


@pytest.mark.parametrize(
    ("func", "kwargs", "expected"),
    [
        (F.dropout, {"p": 0.1}, True),
        (F.dropout, {"p": 0.0}, False),
        (F.dropout, {"p": 0.1, "training": False}, False),
        (torch.dropout, {"p": 0.1, "train": True}, True),
        (F.rrelu, {}, False),
        (F.rrelu, {"training": True}, True),
        (F.rrelu, {"training": True, "lower": 0.2, "upper": 0.2}, False),
        (torch.rrelu, {"training": True}, True),
        (F.relu, {}, False),
    ],
)
def test_functions_of_torch_drop_by_their_arguments(
    func: Callable[..., Any], kwargs: dict[str, Any], expected: bool
) -> None:
    assert drops(func, (X,), kwargs) is expected
