"""precision-parity beyond its own examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.probes.precision_passes import ConfiguredPrecision
from debugkit.report import Result
from debugkit.testing import blobs, mlp


def judge(target: Target) -> Result:
    return debugkit.run(target, select="precision-parity")["precision-parity"]


def with_precision(model: nn.Module, precision: str | None = "bf16") -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss(), precision=precision)


def low(dtype: torch.dtype) -> Target:
    x, y = next(iter(DataLoader(blobs().dataset, batch_size=64)))
    loader = DataLoader(TensorDataset(x.to(dtype), y), batch_size=16)
    return Target(mlp().to(dtype), loader, nn.CrossEntropyLoss())


class Sampling(nn.Module):
    """Adds noise as a variational model does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        return self.head(h + 5 * torch.randn_like(h))  # type: ignore[no-any-return]


class Masked(nn.Module):
    """Gives scores of minus infinity for a class that is ruled out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(classes=3)
        self.rule = nn.Buffer(torch.tensor([0.0, 0.0, float("-inf")]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.rule  # type: ignore[no-any-return]


class Chaotic(nn.Module):
    """Repeats a map that doubles every difference."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for _ in range(40):
            h = (3 * h).sin() * 2
        return self.last(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_precision(mlp()),
        lambda: with_precision(mlp(), "fp16"),
        lambda: low(torch.bfloat16),
        lambda: low(torch.float16),
        lambda: with_precision(nn.Sequential(nn.Dropout(0.5), mlp())),
        lambda: with_precision(nn.Sequential(nn.BatchNorm1d(8), mlp())),
        lambda: with_precision(Sampling()),
        lambda: with_precision(Masked(), "fp16"),
        lambda: with_precision(Chaotic()),
        lambda: with_precision(nn.Sequential(nn.Linear(8, 2), nn.Softmax(-1))),
    ],
)
def test_healthy_steps_pass(make: Any) -> None:
    torch.manual_seed(0)
    result = judge(make())
    assert result.status == "pass", (result.reason, result.findings)


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_full_precision_is_a_skip_without_a_pass(precision: str | None) -> None:
    model = mlp()
    calls: list[int] = []
    model.forward = lambda x: calls.append(1)  # type: ignore[method-assign,assignment]
    result = judge(Target(model, precision=precision))
    assert result.status == "skip"
    assert "float32" in (result.reason or "")
    assert not calls


def test_weights_tell_the_precision() -> None:
    assert ConfiguredPrecision.collect(low(torch.float16)) == ConfiguredPrecision(
        torch.float16, by_weights=True
    )
    autocast = ConfiguredPrecision.collect(with_precision(mlp(), "bf16"))
    assert autocast == ConfiguredPrecision(torch.bfloat16, by_weights=False)


def test_the_model_is_left_as_it_was() -> None:
    target = low(torch.bfloat16)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in target.model.named_parameters()}
    assert judge(target).status == "pass"
    for name, parameter in target.model.named_parameters():
        assert parameter.dtype is torch.bfloat16
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert not target.model.get_submodule(name.rpartition(".")[0])._forward_hooks


def test_autocast_inside_the_step_is_switched_off_for_float32() -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(8, 8), mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x) * 1e4
            return self.body(F.normalize(h * h))  # type: ignore[no-any-return]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return F.cross_entropy(model(batch[0]).float(), batch[1])

    result = judge(Target(Squares(), blobs(), training_step=step, precision="fp16"))
    assert [f.level for f in result.findings] == ["fail"]


def test_a_loss_that_overflows_by_itself_is_told() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        scores = model(batch[0])
        return (scores * 1000).square().sum() + F.cross_entropy(scores, batch[1])

    result = judge(Target(mlp(), blobs(), training_step=step, precision="fp16"))
    assert [f.level for f in result.findings] == ["fail"]
    assert "the loss is inf in float16" in result.findings[0].message


def test_steps_that_give_no_graph_are_a_skip() -> None:
    target = Target(mlp(), blobs(), training_step=lambda m, b: m(b[0]).detach().sum(), precision="bf16")
    assert judge(target).status == "skip"
