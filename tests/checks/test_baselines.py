"""baselines beyond its own examples."""

from __future__ import annotations

import math
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


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="baselines", config=config)["baselines"]


def batches(*columns: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=20, shuffle=True)


CE = nn.CrossEntropyLoss()


def test_constant_answers_for_classes() -> None:
    y = torch.tensor([0] * 75 + [1] * 25)
    result = judge(Target(mlp(features=3), batches(torch.randn(100, 3), y), CE))
    measured = result.findings[0].measured
    assert measured["majority"] == 0.75
    assert measured["loss"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert measured["random_loss"] == pytest.approx(math.log(2))


def test_a_mean_for_values() -> None:
    x = torch.randn(60, 3)
    result = judge(Target(nn.Linear(3, 1), batches(x, x[:, :1] * 2 + 5), nn.MSELoss()))
    assert result.findings[0].measured["loss"] == pytest.approx(
        4 * float(x[:, 0].var(correction=0)), rel=1e-3
    )
    assert result.findings[1].measured["explained"] == pytest.approx(1, abs=0.01)


def test_frequencies_for_tokens_and_tags() -> None:
    ids = torch.randint(0, 3, (40, 6))
    step = lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten())  # noqa: E731
    result = judge(Target(nn.Embedding(3, 3), batches(ids, ids), step))
    counts = ids.flatten().bincount().double()
    entropy = float(-(counts / counts.sum() * (counts / counts.sum()).log()).sum())
    assert result.findings[0].measured["loss"] == pytest.approx(entropy)


def test_each_label_of_several() -> None:
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]).repeat(16, 1)
    result = judge(Target(nn.Linear(3, 2), batches(torch.randn(64, 3), y), nn.BCEWithLogitsLoss()))
    assert result.findings[0].measured["majority"] == 0.75


def test_the_evaluation_split_is_measured() -> None:
    result = judge(Target(mlp(), blobs(80), CE, eval_loader=blobs(40)))
    assert result.findings[-1].measured["evaluation_accuracy"] == 1.0


def test_perfection_needs_many_samples() -> None:
    assert judge(Target(mlp(), blobs(256), CE)).status == "pass"
    perfect = judge(Target(mlp(), blobs(1200), CE))
    assert perfect.status == "warn"
    assert judge(Target(mlp(), blobs(1200), CE), checks={"baselines": {"min-samples": 1300}}).status == "pass"


def test_a_mistake_in_the_evaluation_split_is_a_mistake() -> None:
    held_out = batches(*[t[:40] for t in blobs(1200).dataset.tensors[:1]], torch.zeros(40).long())  # type: ignore[attr-defined]
    assert judge(Target(mlp(), blobs(1200), CE, eval_loader=held_out)).status == "pass"


def test_nothing_to_count_is_a_skip() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch[0]).mean()
        return loss

    assert judge(Target(nn.Linear(3, 2), batches(torch.randn(40, 3)), training_step=step)).status == "skip"
