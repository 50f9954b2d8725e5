"""label-leakage beyond its own examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import blobs, mlp

CE = nn.CrossEntropyLoss()


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="label-leakage", config=config)["label-leakage"]


def batches(*columns: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=32, shuffle=True)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(samples: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))


def informative(y: torch.Tensor) -> torch.Tensor:
    return normal(len(y), 6) + 0.7 * y[:, None]


class Sum(nn.Module):
    """Reads token ids and anything else."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(200, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.embed(ids))
        return scores


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("samples", [64, 256])
def test_one_strong_feature_among_noise_is_the_task(samples: int, seed: int) -> None:
    y = drawn(samples, 2, seed)
    x = normal(samples, 8, seed=seed)
    x[:, 0] += 6 * y
    assert judge(Target(mlp(), batches(x, y), CE)).status == "pass"
    assert judge(Target(mlp(), blobs(samples, seed=seed), CE)).status == "pass"
    x[:, 0] = 2.0 * y - 1
    assert judge(Target(mlp(), batches(x, y), CE)).status == "pass"


@pytest.mark.parametrize("classes", [2, 4])
def test_a_planted_token_is_the_task(classes: int) -> None:
    y = drawn(300, classes)
    ids = drawn(300 * 12, 150, seed=2).reshape(300, 12) + 20
    ids[:, 1] = 3 + y
    assert judge(Target(Sum(classes), batches(ids, y), CE)).status == "pass"


def test_a_token_beside_informative_ones_gives_the_label_away() -> None:
    y = drawn(300, 2)
    ids = drawn(300 * 12, 100, seed=2).reshape(300, 12) + 20
    hinted = torch.rand(300, generator=torch.Generator().manual_seed(3)) < 0.5
    ids[hinted, 4] = 10 + y[hinted]
    ids[:, -1] = 5 + y
    result = judge(Target(Sum(), batches(ids, y), CE))
    assert result.status == "warn"
    assert "gives the label away" in result.findings[0].message


@pytest.mark.parametrize("columns", [1, 3])
def test_an_autoencoder_is_noted(columns: int) -> None:
    x = normal(64, 8)[:, None].repeat(1, columns, 1)
    assert judge(Target(nn.Linear(8, 8), batches(x, x), nn.MSELoss())).status == "pass"


def test_one_of_several_channels_is_the_target() -> None:
    x = normal(64, 3, 6, 6)
    result = judge(Target(nn.Conv2d(3, 1, 1), batches(x, x[:, 1:2]), nn.MSELoss()))
    assert result.status == "fail"
    assert "`[0]`[:, 1] equals" in result.findings[0].message


def test_a_linear_law_of_one_variable_is_no_leak() -> None:
    x = torch.linspace(-1, 1, 200)[:, None]
    assert judge(Target(nn.Linear(1, 1), batches(x, 3 * x + 1), nn.MSELoss())).status == "pass"
    x = normal(200, 4)
    assert judge(Target(nn.Linear(4, 1), batches(x, 3 * x[:, :1] + 1), nn.MSELoss())).status == "pass"


def test_the_target_on_another_scale() -> None:
    hidden = normal(300, 1)
    x = torch.cat([hidden + 0.5 * normal(300, 4, seed=2), (2 * hidden).exp()], 1)
    result = judge(Target(nn.Linear(5, 1), batches(x, hidden), nn.MSELoss()))
    assert result.status == "fail"
    assert "on another scale" in result.findings[0].message


def test_a_key_that_the_model_never_sees_is_noted() -> None:
    y = drawn(96, 2)
    rows = [{"x": x, "group": label, "labels": label} for x, label in zip(informative(y), y, strict=True)]
    data = DataLoader(rows, batch_size=16, shuffle=True)  # type: ignore[arg-type]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"]), batch["labels"])

    def leaky(model: nn.Module, batch: Any) -> torch.Tensor:
        x = torch.cat([batch["x"][:, :5], batch["group"][:, None].float()], 1)
        return F.cross_entropy(model(x), batch["labels"])

    assert judge(Target(mlp(features=6), data, training_step=step)).status == "pass"
    assert judge(Target(mlp(features=6), data, training_step=leaky)).status == "fail"


def test_mixed_targets_are_not_inputs() -> None:
    y = drawn(96, 2)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, one, other = batch
        scores = model(x)
        return 0.7 * F.cross_entropy(scores, one) + 0.3 * F.cross_entropy(scores, other)

    target = Target(mlp(features=6), batches(informative(y), y, y.clone()), training_step=step)
    assert judge(target).status in ("pass", "skip")


def test_few_samples_prove_nothing() -> None:
    x = normal(16, 4)
    result = judge(Target(nn.Linear(4, 1), batches(x, x[:, :1]), nn.MSELoss()))
    assert result.status == "pass"
    assert "too few" in result.findings[0].message


def test_language_models_are_left_to_label_shift() -> None:
    ids = drawn(64 * 8, 50).reshape(64, 8)
    loss = Target(
        nn.Embedding(50, 50),
        batches(ids, ids),
        lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten()),
    )
    assert judge(loss).status == "skip"
