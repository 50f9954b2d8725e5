"""label-noise beyond its own examples: what it must not say, and what it can't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result

CE = nn.CrossEntropyLoss()


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="label-noise", config=config)["label-noise"]


def target(x: torch.Tensor, y: torch.Tensor, shuffle: bool = True, **options: Any) -> Target:
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=shuffle)
    return Target(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), loader, CE, **options)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(samples: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))


def said(result: Result) -> str:
    return " ".join(finding.message for finding in result.findings)


@pytest.mark.parametrize("samples", [40, 128, 600])
@pytest.mark.parametrize(
    "inputs", ["normal", "uniform", "bits", "ids", "images", "wide", "two domains", "correlated", "xor"]
)
def test_labels_that_no_cheap_model_tells_are_left_alone(samples: int, inputs: str) -> None:
    y = drawn(samples, 2)
    x = {
        "normal": normal(samples, 8),
        "uniform": torch.rand(samples, 8, generator=torch.Generator().manual_seed(2)),
        "bits": (normal(samples, 8) > 0).float(),
        "ids": drawn(samples * 10, 90, seed=3).reshape(samples, 10),
        "images": normal(samples, 1, 10, 10),
        "wide": normal(samples, 1, 24, 24),
        "two domains": normal(samples, 8) + 8 * drawn(samples, 2, seed=9)[:, None] * torch.eye(8)[0],
        "correlated": normal(samples, 8) + 0.3 * normal(samples, 1, seed=5),
        "xor": normal(samples, 2),
    }[inputs]
    if inputs == "xor":
        y = (x[:, 0] * x[:, 1] > 0).long()
    assert judge(target(x, y)).status == "pass"


def test_forecasting_white_noise_is_at_most_a_warning() -> None:
    returns = normal(401)
    result = judge(target(returns[:-1, None].repeat(1, 2), (returns[1:] > 0).long(), shuffle=False))
    assert result.status in ("pass", "warn")


def test_series_are_not_moved() -> None:
    walk = normal(620).cumsum(0)
    x = torch.stack([walk[i : i + 16] for i in range(600)])
    assert judge(target(x, (walk[16:616] > walk[15:615]).long())).status == "pass"


@pytest.mark.parametrize("gap", [0.5, 1.0, 1.5, 2.0])
def test_overlap_is_no_noise(gap: float) -> None:
    y = drawn(800, 2)
    x = normal(800, 8)
    x[:, 0] += gap * y
    assert judge(target(x, y)).status == "pass"


def test_the_samples_are_listed() -> None:
    y = drawn(500, 2)
    x = normal(500, 6) + 3 * y[:, None]
    wrong = torch.zeros(500, dtype=torch.bool)
    wrong[::5] = True
    result = judge(target(x, torch.where(wrong, 1 - y, y)))
    assert result.status == "warn"
    named = result.findings[0].measured["samples"]
    assert isinstance(named, list)
    numbers = [int(str(name)[6:-1]) for name in named]
    assert sum(number % 5 == 0 for number in numbers) > 0.9 * len(numbers)
    assert (
        judge(target(x, torch.where(wrong, 1 - y, y)), checks={"label-noise": {"max-share": 0.3}}).status
        == "pass"
    )


def test_a_few_samples_give_no_estimate() -> None:
    y = drawn(100, 2)
    assert "not estimated" in said(judge(target(normal(100, 6) + 3 * y[:, None], y)))


@pytest.mark.parametrize("move", [1, 2, -3])
def test_labels_that_are_moved_are_found(move: int) -> None:
    y = drawn(300, 3)
    x = normal(300, 70) + 2 * normal(3, 70, seed=4)[y]
    result = judge(target(x, y.roll(move)))
    assert result.status == "fail"
    assert f"{abs(move)} row" in said(result)


def test_equal_inputs_with_unrelated_labels() -> None:
    ids = drawn(300 * 12, 90, seed=3).reshape(300, 12).repeat(2, 1)
    result = judge(target(ids, drawn(600, 2)))
    assert result.status == "fail"
    assert "300 inputs occur more than once" in said(result)


def test_equal_inputs_of_few_bits_prove_nothing() -> None:
    assert judge(target((normal(600, 6) > 0).float(), drawn(600, 2))).status == "pass"


def test_a_table_without_any_relation() -> None:
    hidden = normal(600, 2)
    x = hidden @ normal(2, 12, seed=6) + 0.2 * normal(600, 12, seed=7)
    assert judge(target(x, (hidden[:, 0] > 0).long())).status == "pass"
    mixed = torch.randperm(600, generator=torch.Generator().manual_seed(8))
    assert judge(target(x, (hidden[:, 0] > 0).long()[mixed])).status == "warn"


def test_continuous_targets_are_measured() -> None:
    x = normal(100, 3)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=20)
    assert "100 % of the variance" in said(judge(Target(nn.Linear(3, 1), loader, nn.MSELoss())))
