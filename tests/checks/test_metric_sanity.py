"""Metrics that know a perfect prediction, and metrics that do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
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


def judged(target: Target, registry: Registry) -> Result:
    return Run(target, select="metric-sanity", config={}, registry=registry).execute()["metric-sanity"]


def classes(metric: Callable[..., Any] | None) -> Target:
    return Target(mlp(classes=3), blobs(96, classes=3, batch_size=32), nn.CrossEntropyLoss(), metric=metric)


def binary(metric: Callable[..., Any]) -> Target:
    def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], y.float())

    return Target(mlp(classes=1), blobs(batch_size=32), loss, metric=metric)


def values(metric: Callable[..., Any]) -> Target:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x.abs().sum(1, keepdim=True) + 3), 32)
    return Target(mlp(classes=1), loader, nn.MSELoss(), metric=metric)


def accuracy(outputs: torch.Tensor, y: torch.Tensor) -> float:
    return float((outputs.argmax(-1) == y).float().mean())


class Running:
    """Keeps what it saw, as metrics with a state do."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, outputs: torch.Tensor, y: torch.Tensor) -> float:
        self.seen.append(accuracy(outputs, y))
        return sum(self.seen) / len(self.seen)


def resampled(outputs: torch.Tensor, y: torch.Tensor) -> float:
    rows = torch.randint(0, len(y), (len(y),))
    return accuracy(outputs[rows], y[rows])


def overwrites(outputs: torch.Tensor, y: torch.Tensor) -> float:
    right = accuracy(outputs, y)
    y.zero_()
    outputs.zero_()
    return right


def macro_recall(outputs: torch.Tensor, y: torch.Tensor) -> float:
    guess = outputs.argmax(-1)
    return float(torch.stack([(guess[y == c] == c).float().mean() for c in range(3)]).mean())


HEALTHY = [
    classes(accuracy),
    classes(F.cross_entropy),
    classes(lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2)),
    classes(lambda o, y: 100 * (1 - accuracy(o, y))),
    classes(lambda o, y: (o.topk(2, -1).indices == y[:, None]).any(-1).float().mean()),
    classes(macro_recall),
    classes(resampled),
    classes(Running()),
    classes(overwrites),
    classes(
        lambda o, y: {
            "accuracy": accuracy(o, y),
            "samples": len(y),
            "confidence": o.softmax(-1).amax(-1).mean(),
        }
    ),
    classes(lambda guess, y: (guess == y).float().mean()),
    binary(lambda o, y: ((o[:, 0] > 0) & (y > 0)).sum() / (y > 0).sum()),
    binary(lambda o, y: ((o[:, 0].sigmoid() > 0.7) == (y > 0)).float().mean()),
    values(lambda o, t: (o - t).abs().mean()),
    values(lambda o, t: 1 - (o - t).square().sum() / (t - t.mean()).square().sum()),
    values(lambda o, t: torch.corrcoef(torch.stack([o[:, 0], t[:, 0]]))[0, 1]),
    values(lambda o, t: ((o - t).abs() < 0.5).float().mean()),
]


@pytest.mark.parametrize("target", HEALTHY, ids=range(len(HEALTHY)))
def test_a_sound_metric_is_quiet(target: Target, registry: Registry) -> None:
    result = judged(target, registry)
    assert result.status == "pass", (result.reason, result.findings)
    assert result.findings


BROKEN = [
    (
        classes(lambda o, y: (o.topk(3, -1).indices == y[:, None]).any(-1).float().mean()),
        "fail",
        "whatever is predicted",
    ),
    (
        classes(lambda o, y: (o.argmax(-1).sort().values == y.sort().values).float().mean()),
        "fail",
        "own target",
    ),
    (classes(lambda o, y: accuracy(o, y) if accuracy(o, y) < 0.9 else math.nan), "warn", "is nan"),
    (binary(lambda o, y: ((o[:, 0] > 0.5) == (y > 0)).float().mean()), "fail", "logits"),
    (binary(lambda o, y: (o.argmax(-1) == y).float().mean()), "fail", "whatever is predicted"),
    (values(lambda o, t: (o - t[:, 0]).square().mean()), "fail", "same shape"),
    (values(lambda o, t: (o - t).mean()), "warn", "own target"),
    (values(lambda o, t: ((o - t).abs() * torch.arange(len(t))[:, None]).mean()), "warn", "another order"),
]


@pytest.mark.parametrize(("target", "level", "said"), BROKEN, ids=range(len(BROKEN)))
def test_a_metric_that_errs_is_told(target: Target, level: str, said: str, registry: Registry) -> None:
    result = judged(target, registry)
    assert result.status == level, (result.reason, result.findings)
    assert any(said in f"{finding.message} {finding.hint}" for finding in result.findings), result.findings


def test_a_metric_that_raises_is_an_error_with_its_place(registry: Registry) -> None:
    result = judged(classes(lambda o, y: o.nonsense(y)), registry)
    assert result.status == "error"
    assert "test_metric_sanity.py:" in (result.reason or "")


def test_a_metric_that_returns_nothing_is_an_error(registry: Registry) -> None:
    result = judged(classes(lambda o, y: None), registry)
    assert result.status == "error"
    assert "returned nothing" in (result.reason or "")


def test_no_metric_is_a_skip(registry: Registry) -> None:
    result = judged(classes(None), registry)
    assert (result.status, "Target(metric=...)" in (result.reason or "")) == ("skip", True)


def test_equal_targets_are_a_skip(registry: Registry) -> None:
    loader = DataLoader(TensorDataset(torch.randn(16, 8), torch.zeros(16, dtype=torch.long)), 16)
    result = judged(Target(mlp(), loader, nn.CrossEntropyLoss(), metric=accuracy), registry)
    assert (result.status, "all targets are the same" in (result.reason or "")) == ("skip", True)


def test_the_state_of_a_metric_stays(registry: Registry) -> None:
    metric = Running()
    judged(classes(metric), registry)
    assert metric.seen == []


@pytest.mark.parametrize(("counts_padding", "level"), [(True, "fail"), (False, "pass")])
def test_compute_metrics_gets_a_prediction(counts_padding: bool, level: str, registry: Registry) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
        max_position_embeddings=16,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (32, 8), generator=generator)
    labels = (ids % 4).masked_fill(torch.arange(8) > 5, -100)
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]

    def compute_metrics(prediction: Any) -> dict[str, float]:
        assert isinstance(prediction.predictions, np.ndarray)
        right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float((right if counts_padding else right[prediction.label_ids != -100]).mean())}

    model = transformers.BertForTokenClassification(config)
    result = judged(Target(model, DataLoader(rows, 16), metric=compute_metrics), registry)
    assert result.status == level, (result.reason, result.findings)
