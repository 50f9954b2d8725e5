"""Fresh weights are told from trained ones by their values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from debugkit.weights.freshness import head_state, is_drawn_by_library, is_noise, is_untouched


def net(std: float | None = None, norm: bool = False) -> nn.Sequential:
    layers = [nn.Linear(8, 64), *([nn.LayerNorm(64)] if norm else []), nn.ReLU(), nn.Linear(64, 5)]
    model = nn.Sequential(*layers)
    if std is not None:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)
    return model


def train(model: nn.Module, steps: int = 200) -> nn.Module:
    x = torch.randn(128, 8)
    y = x[:, :5].argmax(1)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model


def head(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()][-2:]


@pytest.mark.parametrize("std", [None, 0.02, 1.0, 10.0])
@pytest.mark.parametrize("norm", [False, True])
def test_an_initialised_head_is_fresh(std: float | None, norm: bool) -> None:
    torch.manual_seed(1)
    model = net(std, norm)
    assert head_state(model, head(model)) == "fresh"
    assert is_untouched(model)


@pytest.mark.parametrize("std", [None, 0.02, 0.3])
@pytest.mark.parametrize("norm", [False, True])
def test_a_trained_head_is_not(std: float | None, norm: bool) -> None:
    torch.manual_seed(1)
    model = train(net(std, norm))
    assert head_state(model, head(model)) != "fresh"
    assert not is_untouched(model)


def test_a_new_head_on_a_trained_body_is_fresh() -> None:
    torch.manual_seed(1)
    model = train(net(norm=True))
    nn.init.normal_(model[3].weight, std=0.02)
    nn.init.zeros_(model[3].bias)
    assert head_state(model, head(model)) == "fresh"
    assert not is_untouched(model)


def test_a_counting_batch_norm_was_used() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    assert is_untouched(model)
    model(torch.randn(4, 8))
    assert not is_untouched(model)


def test_structure_is_no_noise() -> None:
    torch.manual_seed(0)
    assert is_noise(torch.randn(200, 64))
    assert not is_noise(torch.randn(200, 64) + 2 * torch.randn(200, 1) @ torch.randn(1, 64))


def test_a_library_says_how_large_its_weights_are() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    model = transformers.BertForSequenceClassification(config)
    assert is_drawn_by_library(model, ["classifier.weight", "classifier.bias"])
    nn.init.normal_(model.classifier.weight, std=1.0)
    assert not is_drawn_by_library(model, ["classifier.weight"])
    assert not is_drawn_by_library(net(), ["2.weight"])
