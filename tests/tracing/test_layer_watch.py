"""What the layer watch measures of a step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugkit.tracing.layers import Layers
from debugkit.tracing.trace import record


def watched(model: nn.Module, x: torch.Tensor, **kwargs: Any) -> Layers:
    with record(model, layers=True) as recorder:
        model(x, **kwargs)
    return recorder.layers


def test_sizes_are_root_mean_squares() -> None:
    model = nn.Linear(3, 2, bias=False)
    nn.init.ones_(model.weight)
    layer = watched(model, torch.full((4, 3), 2.0)).layers["weight"]
    assert (layer.input_rms, layer.output_rms, layer.output_spread) == (2.0, 6.0, 0.0)
    assert (layer.units, layer.fan_in, layer.bias) == (2, 3, None)


def test_layers_know_what_lies_before_them() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    found = watched(model, torch.randn(5, 4))
    assert found.layers["2.weight"].before == {"0.weight"}
    assert found.hidden == {"0.weight", "2.weight"}
    assert [layer.name for layer in found.after("2.weight")] == ["3.weight"]
    assert found.collapse is None


def test_units_of_a_convolution_are_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    nn.init.constant_(model[1].bias[:3], -100.0)
    (activation,) = watched(model, torch.randn(2, 1, 8, 8)).activations
    assert (activation.layer, activation.units, activation.samples) == ("0.weight", 6, 72)
    assert activation.dead_share == 0.5


def test_zeros_are_not_dead() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert watched(model, torch.randn(4, 4)).activations[0].dead_share == 0.0


@pytest.mark.parametrize("op", ["linear", "matmul", "addmm", "einsum", "transposed"])
def test_a_weight_is_found_however_it_is_used(op: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if op == "linear":
                return F.linear(x, self.w, self.b)
            if op == "addmm":
                return torch.addmm(self.b, x, self.w)
            if op == "einsum":
                return torch.einsum("bi,io->bo", x, self.w)
            return x @ (self.w.T if op == "transposed" else self.w)

    (layer,) = watched(Net(), torch.randn(3, 4)).layers.values()
    assert layer.name == "w"
    assert layer.axis == (0 if op in ("linear", "transposed") else 1)


def test_a_linear_model_collapses() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 2))
    found = watched(model, torch.randn(5, 4)).collapse
    assert found is not None
    assert found.layers == ("0.weight", "3.weight")
    assert not found.narrow


@pytest.mark.parametrize(
    "between",
    [nn.LayerNorm(8), nn.Softmax(1), nn.PReLU(), nn.Hardtanh(), nn.Sequential(nn.Linear(8, 8), nn.SELU())],
)
def test_what_is_not_affine_keeps_layers_apart(between: nn.Module) -> None:
    assert (
        watched(nn.Sequential(nn.Linear(4, 8), between, nn.Linear(8, 2)), torch.randn(5, 4)).collapse is None
    )


def test_attention_is_not_affine() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.attention(x, x, x)[0])
            return logits

    assert watched(Net(), torch.randn(2, 5, 8)).collapse is None


def test_norms_count_the_values_that_share_a_mean() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.GroupNorm(2, 8), nn.BatchNorm1d(8), nn.LayerNorm(6))
    group, batch, layer = watched(model, torch.randn(5, 4, 6)).norms
    assert [norm.over for norm in (group, batch, layer)] == [24, 30, 6]
    assert 0.3 < batch.variance < 1.5
    assert (layer.layer, layer.layer_axis, layer.normalised) == ("0.weight", 1, (2,))


def test_a_bias_before_a_batch_norm_is_seen() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
    )
    first, second = watched(model, torch.randn(5, 4)).norms
    assert first.adds_bias == "0.bias"
    assert second.adds_bias is None


def test_values_without_numbers_are_left_out() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8))
        found = watched(model, torch.empty(3, 4))
    assert not found.layers
    assert not found.activations
    assert not found.norms


def test_infinite_outputs_are_infinite() -> None:
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, math.inf)
    assert math.isinf(watched(model, torch.ones(3, 4)).layers["weight"].output_rms)


def test_transforms_of_functions_pass() -> None:
    model = nn.Linear(4, 2)
    with record(model, layers=True) as recorder:
        torch.func.vmap(model)(torch.randn(3, 4))
    assert not recorder.layers.layers
