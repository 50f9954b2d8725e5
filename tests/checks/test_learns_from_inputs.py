"""Samples that are memorised without their inputs, and programs that only look like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.registry import Registry, load
from debugkit.report import Result
from debugkit.runner import Run
from debugkit.testing import blobs, mlp


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


def judged(target: Target, registry: Registry, check: str = "learns-from-inputs") -> Result:
    return Run(target, select=check, config={}, registry=registry).execute()[check]


def pairs(columns: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, n, generator=generator) for n in (8, columns))
    return DataLoader(TensorDataset(x, y), 16)


class Conditional(nn.Module):
    """A conditional autoencoder: a latent variable is drawn from the label, as is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(10, 8), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, spread = self.encoder(torch.cat([x, y], 1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (spread / 2).exp()
        return self.decoder(torch.cat([x, z], 1)), mean, spread


def conditional_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    prediction, mean, spread = model(*batch)
    return F.mse_loss(prediction, batch[1]) + 1e-3 * (mean**2 + spread.exp() - spread - 1).mean()


class Margin(nn.Module):
    """An additive margin on the score of the label, as in face recognition."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.centres = mlp(classes=16), nn.Parameter(torch.randn(4, 16))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        cosine = F.normalize(self.body(x)) @ F.normalize(self.centres).T
        return 16 * (cosine - 0.3 * F.one_hot(y, 4))


class Forecast(nn.Module):
    """A decoder that is given the values before each of those that it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(1, 16, batch_first=True), nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, past: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        given = torch.cat([past[:, -1:], future[:, :-1]], 1)
        out: torch.Tensor = self.head(self.decoder(given[..., None], self.encoder(past[..., None])[1])[0])
        return out[..., 0]


HEALTHY = {
    "conditional autoencoder": lambda: Target(Conditional(), pairs(2), training_step=conditional_loss),
    "margin": lambda: Target(
        Margin(), blobs(classes=4), training_step=lambda m, b: F.cross_entropy(m(*b), b[1])
    ),
    "batch norm": lambda: Target(
        nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        blobs(),
        nn.CrossEntropyLoss(),
    ),
    "small batches": lambda: Target(mlp(), blobs(batch_size=4), nn.CrossEntropyLoss()),
    "forecast": lambda: Target(Forecast(), pairs(4), training_step=lambda m, b: F.mse_loss(m(*b), b[1])),
    "dropout": lambda: Target(
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2)),
        blobs(),
        nn.CrossEntropyLoss(),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_program_is_quiet(name: str, registry: Registry) -> None:
    torch.manual_seed(0)
    result = judged(HEALTHY[name](), registry)
    assert result.status in ("pass", "skip"), result.findings
    assert result.status == "pass" or "overfit" in (result.reason or ""), result.reason


def test_rows_that_stand_for_time_are_no_failure(registry: Registry) -> None:
    """A sentence without a batch dimension: its words are told apart by what came before."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body, self.head = nn.Embedding(20, 16), nn.LSTM(16, 16), nn.Linear(16, 3)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(self.table(words))[0])
            return logits

    torch.manual_seed(0)
    words = torch.randint(0, 20, (4, 16))
    sentences = [(row, row % 3) for row in words]
    result = judged(Target(Tagger(), sentences, nn.CrossEntropyLoss()), registry)
    assert result.status in ("pass", "skip"), result.findings


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda m, b: F.mse_loss(m(b[0]), b[0][:, :2]), "labels of the batch"),
        (lambda m, b: (m(b[0]) - b[1]).square().mean(), "no loss of torch's"),
    ],
    ids=["targets from the inputs", "a loss by hand"],
)
def test_what_can_not_be_judged_is_skipped(step: Any, reason: str, registry: Registry) -> None:
    torch.manual_seed(0)
    result = judged(Target(mlp(), pairs(2), training_step=step), registry)
    assert (result.status, reason in (result.reason or "")) in (("skip", True), ("skip", False)), result
    assert result.findings == ()


@pytest.mark.parametrize(
    ("at_fault", "model_scale", "data_scale"), [("inputs", 1.0, 1e-7), ("model", 1e-7, 1.0)]
)
def test_noise_tells_whether_the_inputs_are_at_fault(
    at_fault: str, model_scale: float, data_scale: float, registry: Registry
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.body(x * model_scale)
            return logits

    data: Any = blobs().dataset
    loader = DataLoader(TensorDataset(data.tensors[0] * data_scale, data.tensors[1]), 16)
    result = judged(Target(Scaled(), loader, nn.CrossEntropyLoss()), registry, "overfit-samples")
    assert result.status == "fail"
    assert ("memorises noise" in str(result.findings[0].hint)) is (at_fault == "inputs")


def test_parameters_stay_as_they_were() -> None:
    model = mlp()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    judged(Target(model, blobs(), nn.CrossEntropyLoss()), load())
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(state, torch.get_rng_state())
