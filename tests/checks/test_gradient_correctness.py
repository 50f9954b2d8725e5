"""What a custom backward does on purpose is a note; what it gets wrong is a failure."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from debugkit import Target
from debugkit.registry import load
from debugkit.report import Result
from debugkit.runner import Run
from debugkit.testing import blobs

REGISTRY = load()


class Saved(torch.autograd.Function):
    """Keeps its input."""

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0]


class Reversal(Saved):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return -0.5 * grads[0]


class Clipped(Reversal):
    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0].clamp(-1e-3, 1e-3)


class Spike(Saved):
    """A step with a smooth gradient, as in spiking networks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + 10 * x.abs()) ** 2


class ThroughClamp(Saved):
    """A clamp that lets the gradient pass beyond its limits."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-0.5, 0.5)


class Quantised(torch.autograd.Function):
    """Learned step size quantisation: gradients of a rounding, for the input and the step."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, step)
        return (x / step).round() * step

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, step = ctx.saved_tensors
        return grads[0], (grads[0] * ((x / step).round() - x / step)).sum().reshape(step.shape)


class Noisy(Saved):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Exponential(Saved):
    """Saves its output."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return grads[0] * y


class Softmax(Exponential):
    """Forgets what the normalisation does to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.softmax(1)
        ctx.save_for_backward(y)
        return y


class SinglePrecision(Exponential):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError("single precision only")
        y = x.exp()
        ctx.save_for_backward(y)
        return y


class Net(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)
        self.step = nn.Parameter(torch.tensor(0.3))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = (self.first(x), self.step) if self.function is Quantised else (self.first(x),)
        return self.last(self.function.apply(*given)) + 0 * self.step


def judged(function: Any) -> Result:
    target = Target(Net(function), blobs(), nn.CrossEntropyLoss())
    return Run(target, select=["gradient-correctness"], config={}, registry=REGISTRY).execute()[
        "gradient-correctness"
    ]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (Reversal, "changes no value"),
        (Clipped, "changes no value"),
        (Spike, "flat or has steps"),
        (ThroughClamp, "flat or has steps"),
        (Quantised, "flat or has steps"),
        (Noisy, "random"),
        (Exponential, "agrees"),
        (SinglePrecision, "agrees"),
    ],
)
def test_what_is_meant_is_a_note(function: Any, said: str) -> None:
    result = judged(function)
    assert result.status == "pass", result
    assert said in result.findings[0].message


def test_a_softmax_without_its_normalisation_fails() -> None:
    result = judged(Softmax)
    assert result.status == "fail"
    assert result.findings[0].location.startswith("tests/checks/test_gradient_correctness.py")  # type: ignore[union-attr]


def test_without_a_custom_function_there_is_nothing_to_look_at() -> None:
    target = Target(nn.Linear(8, 2), blobs(), nn.CrossEntropyLoss())
    result = Run(target, select=["gradient-correctness"], config={}, registry=REGISTRY).execute()
    assert result["gradient-correctness"].status == "skip"


def test_the_profile_hook_comes_back() -> None:
    def hook(*_: Any) -> None:
        return None

    sys.setprofile(hook)
    try:
        judged(Exponential)
        assert sys.getprofile() is hook
    finally:
        sys.setprofile(None)
