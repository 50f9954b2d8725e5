"""Healthy layers stay quiet under the checks of initialisation, norms and activations; odd ones do not crash them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.registry import load
from debugkit.report import Report
from debugkit.runner import Run
from debugkit.testing import blobs, mlp

CHECKS = ["initialization", "normalization", "activations", "gradient-scale", "gradient-correctness"]
REGISTRY = load()


def report(target: Target) -> Report:
    return Run(target, select=CHECKS, config={"max-cost": "backward"}, registry=REGISTRY).execute()


def loud(target: Target) -> dict[str, object]:
    return {
        result.check: result.reason or [finding.message for finding in result.active]
        for result in report(target).results
        if result.status in ("warn", "fail", "error")
    }


def classifier(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


class Through(nn.Module):
    """An encoder and a head with any function between."""

    def __init__(self, join: Callable[[torch.Tensor], torch.Tensor], width: int = 32) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(8, width), nn.Linear(width, 2)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.join(self.encoder(x)))
        return logits


class EqualisedRate(nn.Module):
    """Weights of unit variance that are scaled where they are used, as in StyleGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(64, 8)), nn.Parameter(torch.randn(2, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.leaky_relu(F.linear(x, self.one / 8**0.5), 0.2)
        return F.linear(hidden, self.two / 64**0.5)


class Fourier(nn.Module):
    """Trainable random Fourier features of a large scale."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies, self.head = nn.Linear(8, 64), nn.Linear(128, 2)
        nn.init.normal_(self.frequencies.weight, std=5.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = self.frequencies(x)
        logits: torch.Tensor = self.head(torch.cat([angles.sin(), angles.cos()], 1))
        return logits


class LowRank(nn.Module):
    """A linear layer with a low-rank update whose second factor starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 32).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 32, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((self.base(x) + self.up(self.down(x))).relu())
        return logits


class ZeroBranches(nn.Module):
    """Residual branches that start at zero (Fixup)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 2)
        self.up = nn.ModuleList(nn.Linear(32, 64) for _ in range(6))
        self.down = nn.ModuleList(nn.Linear(64, 32) for _ in range(6))
        for layer in self.down:
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(x)))
        logits: torch.Tensor = self.head(x)
        return logits


class FastText(nn.Module):
    """Embeddings and one linear layer: linear by design."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(40, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x.abs() * 10).long().clamp(max=39)
        logits: torch.Tensor = self.head(self.words(ids))
        return logits


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "linear probe": lambda: nn.Linear(8, 2),
    "no activation modules": lambda: Through(lambda h: h * h.sigmoid()),
    "maxout": lambda: Through(lambda h: torch.maximum(h, h.flip(1))),
    "product": lambda: Through(lambda h: h * h.roll(1, 1)),
    "softmax between": lambda: Through(lambda h: h.softmax(1)),
    "sine": lambda: Through(lambda h: torch.sin(30 * h)),
    "equalised learning rate": EqualisedRate,
    "Fourier features": Fourier,
    "low rank update": LowRank,
    "branches of zero": ZeroBranches,
    "bag of words": FastText,
    "wide weights before a norm": lambda: _unit_variance_before_a_norm(),
    "dropout of 0.6": lambda: nn.Sequential(nn.Linear(8, 64), nn.ELU(), nn.Dropout(0.6), nn.Linear(64, 2)),
    "gated": lambda: Through(lambda h: F.glu(h.repeat(1, 2), 1)),
    "deep": lambda: nn.Sequential(
        *(part for size in (8, 64, 64, 64, 64) for part in (nn.Linear(size, 64), nn.ReLU())), nn.Linear(64, 2)
    ),
    "weights of bfloat16": lambda: Through(lambda h: h.bfloat16().relu().float()),
    "double precision": lambda: Through(torch.relu).double(),
}


def _unit_variance_before_a_norm() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 2)
    )
    nn.init.normal_(model[2].weight)
    return model


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_are_quiet(name: str) -> None:
    torch.manual_seed(0)
    model = HEALTHY[name]()
    dtype = next(model.parameters()).dtype
    step = lambda net, batch: F.cross_entropy(net(batch[0].to(dtype)), batch[1])  # noqa: E731
    assert not loud(Target(model, blobs(), training_step=step))


def test_a_trained_model_with_dead_units_is_not_warned_about() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in [batch for _ in range(5) for batch in blobs()]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model[0].bias[:50] -= 50
    result = report(classifier(model))["activations"]
    assert result.status == "pass"
    assert "not fresh" in str(result.findings)


def test_layers_that_a_step_chains_itself_are_its_own_matter() -> None:
    model = nn.ModuleDict({"one": nn.Linear(8, 16), "two": nn.Linear(16, 2)})
    step = lambda net, batch: F.cross_entropy(net["two"](net["one"](batch[0])), batch[1])  # noqa: E731
    assert not loud(Target(model, blobs(), training_step=step))


def test_a_model_without_weights_is_skipped() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.scale)[:, :2]

    results = {result.check: result.status for result in report(classifier(Scale())).results}
    assert results["initialization"] == results["activations"] == results["normalization"] == "skip"
    assert results["gradient-scale"] == "pass"


def test_saturation_by_weights_is_one_finding() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    nn.init.normal_(model[2].weight, std=2.0)
    found = loud(classifier(model))
    assert list(found) == ["initialization"]


def test_a_layer_of_two_equal_halves_that_part_is_healthy() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[16:] = model[0].weight[:16]  # type: ignore[operator, index]
        model[0].bias[16:] = model[0].bias[:16]  # type: ignore[operator, index]
    assert not loud(classifier(model))


def test_the_step_is_untouched() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(inplace=True), nn.Linear(32, 2))
    nn.init.constant_(model[0].bias, -3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report(classifier(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_whose_norm_underflows_do_not_crash() -> None:
    layers = [part for _ in range(5) for part in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 2))
    step = lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]) * 1e-30  # noqa: E731
    assert not loud(Target(model, blobs(), training_step=step))


def test_weights_as_the_library_draws_them_are_not_questioned() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BlipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    model = transformers.BlipVisionModel(config)
    x = torch.randn(8, 3, 16, 16)
    step = lambda net, batch: net(pixel_values=batch[0]).pooler_output.square().mean()  # noqa: E731
    assert config.initializer_range < 1e-6
    assert "initialization" not in loud(Target(model, [(x,)], training_step=step))


class Branches(nn.Module):
    """Two layers beside each other in each of two blocks; little depends on the first of each, more on the later block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 2)
        parts = {"way1": nn.Linear(16, 16), "way2": nn.Linear(16, 16)}
        self.blocks = nn.ModuleList(nn.ModuleDict(copy.deepcopy(parts)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block, small in zip(self.blocks, (1e-6, 1e-2), strict=True):
            x = x + small * block["way1"](x) + 100 * small * block["way2"](x)  # type: ignore[index]
        logits: torch.Tensor = self.head(x)
        return logits


def test_branches_of_a_block_are_not_behind_each_other() -> None:
    found = report(classifier(Branches()))["gradient-scale"]
    assert found.status == "pass", [finding.message for finding in found.findings]
