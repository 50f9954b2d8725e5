"""Healthy programs that look like mistakes to `initial-loss`, `loss-floor` and `auxiliary-loss`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.registry import Registry, load
from debugkit.testing import mlp, run_example

CHECKS = ("initial-loss", "loss-floor", "auxiliary-loss", "accumulation")
PROGRAMS: dict[str, Callable[[], Target]] = {}

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :4].argmax(1)
LOG: dict[str, Any] = {}


def data(*columns: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=16, shuffle=True)


def healthy(make: Callable[[], Target]) -> Callable[[], Target]:
    PROGRAMS[make.__name__] = make
    return make


def classifier(step: Callable[..., Any], model: nn.Module | None = None) -> Target:
    return Target(model or mlp(classes=4), data(X, Y), training_step=step)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.value = mlp(classes=16), nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.body(x).relu()
        return self.kind(h), self.value(h)[:, 0]


class Angles(nn.Module):
    def __init__(self, scale: float, margin: float = 0.0) -> None:
        super().__init__()
        self.body, self.centres = mlp(classes=16), nn.Parameter(torch.randn(4, 16))
        self.scale, self.margin = scale, margin

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        angles = F.linear(F.normalize(self.body(x)), F.normalize(self.centres))
        return F.cross_entropy(self.scale * (angles - self.margin * F.one_hot(y, 4)), y)


@healthy
def prior_bias() -> Target:
    model = mlp(classes=4)
    nn.init.constant_(model[2].bias, -3.0)
    return Target(model, data(X, (X[:, :4] > 1.6).float()), nn.BCEWithLogitsLoss())


@healthy
def focal_loss() -> Target:
    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(z, y, reduction="none")
        return ((1 - torch.exp(-each.detach())) ** 2 * each).mean()

    return Target(mlp(classes=4), data(X, Y), loss)


@healthy
def angular_margin() -> Target:
    return classifier(lambda model, batch: model(*batch), Angles(64.0, margin=0.35))


@healthy
def scaled_angles() -> Target:
    return classifier(lambda model, batch: model(*batch), Angles(30.0))


@healthy
def contrast_at_a_high_temperature() -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        z = F.normalize(torch.cat([model(batch[0]), model(batch[0] + 0.1)]))
        n = len(batch[0])
        similar = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e9)
        return F.cross_entropy(similar, (torch.arange(2 * n) + n) % (2 * n))

    return classifier(step, mlp(classes=16))


@healthy
def class_weights_and_smoothing() -> Target:
    weight = torch.tensor([1.0, 5.0, 2.0, 0.5])
    return Target(mlp(classes=4), data(X, Y), nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2))


@healthy
def targets_far_from_zero() -> Target:
    return Target(mlp(classes=1), data(X, 10 * X[:, :1] + 50), nn.MSELoss())


@healthy
def metrics_beside_the_loss() -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        z = model(batch[0])
        LOG["mae"] = F.l1_loss(z.softmax(1), F.one_hot(batch[1], 4).float())
        LOG["clean"] = F.cross_entropy(model(batch[0] + 0.1), batch[1]).item()
        with torch.no_grad():
            LOG["nll"] = F.nll_loss(z.log_softmax(1), batch[1])
        return F.cross_entropy(z, batch[1])

    return classifier(step)


@healthy
def parameters_touched_by_a_zero() -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1]) + 0.0 * sum(p.sum() for p in model.parameters())

    return classifier(step)


@healthy
def penalty_warmed_up_from_zero() -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        z = model(batch[0])
        return F.cross_entropy(z, batch[1]) + min(1.0, 0 / 100) * F.mse_loss(z, torch.zeros_like(z))

    return classifier(step)


@healthy
def loss_weighted_by_another() -> Target:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        kind, value = model(batch[0])
        first, second = F.cross_entropy(kind, batch[1]), F.mse_loss(value, batch[0][:, 0])
        return first / first.detach() + second / second.detach()

    return classifier(step, Two())


@healthy
def learned_weights_of_tasks() -> Target:
    class Weighted(Two):
        def __init__(self) -> None:
            super().__init__()
            self.log_variances = nn.Parameter(torch.zeros(2))

    def step(model: Any, batch: Any) -> torch.Tensor:
        kind, value = model(batch[0])
        losses = torch.stack([F.cross_entropy(kind, batch[1]), F.mse_loss(value, batch[0][:, 0])])
        total: torch.Tensor = ((-model.log_variances).exp() * losses + model.log_variances).sum()
        return total

    return classifier(step, Weighted())


@healthy
def models_own_loss_replaced() -> Target:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=4)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            z = self.body(x)
            return {"loss": F.cross_entropy(z, labels), "logits": z}

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        z = model(*batch)["logits"]
        chosen = z.log_softmax(1).gather(1, batch[1][:, None])
        return -((1 - chosen.exp()) ** 2 * chosen).mean()

    return classifier(step, Own())


@healthy
def upsampled_scores() -> Target:
    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(1, 3, 3, stride=4, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.interpolate(self.body(x), scale_factor=4.0, mode="bilinear")

    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Target(Coarse(), data(x, (x[:, 0] > 0).long()), nn.CrossEntropyLoss())


@healthy
def residual_over_a_clipped_correction() -> Target:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise = mlp(classes=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - self.noise(x).tanh()

    noisy = X + 0.2 * torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
    return Target(Denoiser(), data(noisy, X), lambda p, y: ((p - y) ** 2).mean())


@healthy
def angle_as_sine_and_cosine() -> Target:
    targets = torch.stack([X[:, 0].sin(), X[:, 0].cos()], 1)
    return Target(mlp(classes=2), data(X, targets), lambda z, y: F.mse_loss(F.normalize(z), y))


@healthy
def ordinal_thresholds() -> Target:
    class Ordinal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.bars = mlp(classes=1), nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.body(x) + self.bars
            return result

    return Target(Ordinal(), data(X, (Y[:, None] > torch.arange(3)).float()), nn.BCEWithLogitsLoss())


@healthy
def temperature_of_a_teacher() -> Target:
    teacher = mlp(classes=4, seed=5).requires_grad_(False)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        z, soft = model(batch[0]), (teacher(batch[0]) / 4).softmax(1)
        return F.cross_entropy(z, batch[1]) + 16 * F.kl_div(
            (z / 4).log_softmax(1), soft, reduction="batchmean"
        )

    return classifier(step)


@healthy
def equal_micro_batches() -> Target:
    return Target(mlp(classes=4), data(X, Y), nn.CrossEntropyLoss(), accumulation_steps=4)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_healthy_program_is_quiet(name: str, registry: Registry) -> None:
    report = run_example(PROGRAMS[name], registry, select="loss")
    said = {
        result.check: [finding.message for finding in result.active] or result.reason
        for result in report.results
        if result.check in CHECKS and result.status in ("warn", "fail", "error")
    }
    assert not said


def test_a_trained_model_may_start_anywhere(registry: Registry) -> None:
    def make() -> Target:
        model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 4))
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(100):
            adam.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            adam.step()
        return Target(model, data(X, (Y + 1) % 4), nn.CrossEntropyLoss())

    (finding,) = run_example(make, registry, select="initial-loss")["initial-loss"].findings
    assert finding.level == "note"
    assert finding.measured["loss"] > 1.5 * math.log(4)
