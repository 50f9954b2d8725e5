"""target-scale beyond its own examples."""

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

X = torch.randn(160, 8, generator=torch.Generator().manual_seed(0))
PRICES = 200_000 + 60_000 * torch.tanh(X[:, :1])


def judge(target: Target, **options: Any) -> Result:
    return debugkit.run(target, select="target-scale", config={"checks": {"target-scale": options}})[
        "target-scale"
    ]


def regression(
    y: torch.Tensor, last: nn.Module | None = None, loss: Any = F.mse_loss, **options: Any
) -> Target:
    model = nn.Sequential(mlp(classes=1 if y.ndim == 1 else y.shape[1]), last or nn.Identity())
    loader = DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True)
    return Target(model, loader, None if "training_step" in options else loss, **options)


def test_a_pass_describes_targets_and_predictions() -> None:
    result = judge(regression(X[:, :1]))
    assert result.status == "pass"
    assert "the targets of `mse_loss` go from" in result.findings[0].message


def test_classes_are_a_skip() -> None:
    assert judge(Target(mlp(), blobs(), nn.CrossEntropyLoss())).status == "skip"


@pytest.mark.parametrize(
    ("last", "y", "status"),
    [
        (nn.ReLU(), X[:, :1].abs(), "pass"),
        (nn.ReLU(), X[:, :1].clamp(min=0) + 0.02 * X[:, 1:2], "pass"),
        (nn.ReLU(), X[:, :1], "fail"),
        (nn.Softplus(), torch.poisson(X[:, :1].exp()), "pass"),
        (nn.Tanh(), torch.tanh(X[:, :2]), "pass"),
        (nn.Tanh(), 2 * torch.tanh(X[:, :2]), "fail"),
        (nn.Hardtanh(0, 5), 2 + torch.tanh(X[:, :1]), "pass"),
        (nn.Softmax(-1), 4 * torch.softmax(X[:, :3], -1), "fail"),
        (nn.Sigmoid(), (X[:, :1] > 0).float(), "pass"),
    ],
)
def test_reach_of_the_last_layer(last: nn.Module, y: torch.Tensor, status: str) -> None:
    assert judge(regression(y, last)).status == status


def test_targets_that_a_mask_leaves_out_do_not_count() -> None:
    y = X[:, :4].abs()
    y[X[:, 4:] > 0.5] = -1

    def masked(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        kept = (y >= 0).float()
        return (F.mse_loss(prediction, y, reduction="none") * kept).sum() / kept.sum()

    assert judge(regression(y, nn.ReLU(), masked)).status == "pass"
    assert judge(regression(y, nn.ReLU())).status == "fail"


def test_a_loss_that_takes_probabilities_takes_no_others() -> None:
    loss = nn.BCEWithLogitsLoss()
    assert judge(regression(X[:, :2], loss=loss)).status == "fail"
    assert judge(regression(torch.rand(160, 2), loss=loss)).status == "pass"
    assert judge(regression((X[:, :2] > 0).float() + 1, loss=loss)).status == "skip"  # classes


def far(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((prediction - y) ** 2).mean()


@pytest.mark.parametrize(
    "loss", [F.mse_loss, F.smooth_l1_loss, far, lambda prediction, y: F.l1_loss(y, prediction)]
)
def test_targets_far_away(loss: Any) -> None:
    result = judge(regression(PRICES, loss=loss))
    assert result.status == "warn"
    assert "1.0" in result.findings[0].message


def test_a_step_by_hand_is_judged_by_what_it_compares() -> None:
    def raw(model: nn.Module, batch: Any) -> torch.Tensor:
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    def scaled(model: nn.Module, batch: Any) -> torch.Tensor:
        return ((model(batch[0]) - (batch[1] - 200_000) / 60_000) ** 2).mean()

    def private(model: Any, batch: Any) -> torch.Tensor:
        return ((model[0](batch[0]) - batch[1]) ** 2).mean()

    assert judge(regression(PRICES, training_step=raw)).status == "warn"
    assert judge(regression(PRICES, training_step=scaled)).status == "skip"
    assert judge(regression(PRICES, training_step=private)).status == "skip"


def test_a_model_that_starts_there_is_fine() -> None:
    class Rescaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 60_000 + 200_000

    assert judge(regression(PRICES, Rescaled())).status == "pass"
    started = regression(PRICES)
    started.model[0][2].bias.data.fill_(200_000)  # type: ignore[index, union-attr]
    assert judge(started).status == "pass"


def test_limits_are_options() -> None:
    y = 30 * X[:, :1]
    assert judge(regression(y)).status == "pass"
    assert judge(regression(y), max_spread=50).status == "warn"
