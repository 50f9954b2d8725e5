"""input-scale beyond its own examples."""

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

CE = nn.CrossEntropyLoss()


def judge(target: Target, **options: Any) -> Result:
    return debugkit.run(target, select="input-scale", config={"checks": {"input-scale": options}})[
        "input-scale"
    ]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loader(*columns: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=16, shuffle=True)


def table(x: torch.Tensor, evaluated: torch.Tensor | None = None, **options: Any) -> Target:
    held_out = None if evaluated is None else loader(evaluated, torch.arange(len(evaluated)) % 2)
    return Target(
        nn.Linear(x.shape[1], 2), loader(x, torch.arange(len(x)) % 2), CE, eval_loader=held_out, **options
    )


def messages(result: Result) -> str:
    return "\n".join(finding.message for finding in result.findings)


def test_a_pass_says_what_was_looked_at() -> None:
    result = judge(table(noise(64, 4)))
    assert result.status == "pass"
    assert "64 samples" in messages(result)
    assert "the first `linear`" in messages(result)


def test_ids_have_no_scale() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(300, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids)

    ids = torch.randint(0, 256, (64, 80), generator=torch.Generator().manual_seed(0))
    result = judge(Target(Bag(), loader(ids, torch.arange(64) % 2), CE))
    assert result.status == "skip"


def test_a_step_that_fails_leaves_a_measurement() -> None:
    x = 1000 * noise(64, 4)
    target = Target(nn.Linear(5, 2), loader(x, torch.arange(64) % 2), CE)
    assert judge(target).status == "pass"


@pytest.mark.parametrize("way", ["division", "layer norm", "sine"])
def test_what_the_model_does_first_counts(way: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if way == "division":
                return self.head(x / 5000)
            return self.head(F.layer_norm(x, (4,)) if way == "layer norm" else torch.sin(x))

    target = Target(Own(), loader(5000 * noise(64, 4), torch.arange(64) % 2), CE)
    assert judge(target).status == "pass"


def test_large_numbers_beside_embeddings() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = nn.Embedding(20, 4)
            self.head = nn.Linear(6, 2)

        def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.names(ids), numbers], 1))

    ids = torch.randint(0, 20, (64,), generator=torch.Generator().manual_seed(0))
    target = Target(Mixed(), loader(ids, 40_000 * noise(64, 2), torch.arange(64) % 2), CE)
    result = judge(target)
    assert result.status == "warn"
    assert result.findings[0].where == "[1]"


def test_bytes_are_judged_where_a_layer_computes_with_them() -> None:
    images = torch.randint(
        0, 256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0].float()).mean((2, 3)), batch[1])

    target = Target(nn.Conv2d(3, 2, 3), loader(images, torch.arange(64) % 2), training_step=step)
    assert "raw pixels" in messages(judge(target))


@pytest.mark.parametrize(
    ("column", "status"),
    [
        (torch.zeros(64), "warn"),
        (torch.full((64,), 7.0), "warn"),
        (torch.ones(64), "pass"),
    ],
)
def test_constant_columns(column: torch.Tensor, status: str) -> None:
    x = noise(64, 6)
    x[:, 2] = column
    assert judge(table(x)).status == status


def test_constants_beside_sparse_columns_are_natural() -> None:
    x = (torch.rand(64, 20, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    x[:, 3] = 0
    assert judge(table(x)).status == "pass"
    assert judge(table(torch.zeros(64, 6))).status == "pass"


def test_few_samples_are_not_judged_constant() -> None:
    x = noise(20, 6)
    x[:, 2] = 3
    assert judge(table(x)).status == "pass"


def test_limits_are_options() -> None:
    x = noise(64, 4) * 60
    assert judge(table(x)).status == "pass"
    assert judge(table(x), max_std=50).status == "warn"


@pytest.mark.parametrize("count", [10, 64])
def test_splits_on_different_scales_need_enough_samples(count: int) -> None:
    result = judge(table(noise(64, 4), 20 + 5 * noise(count, 4, seed=1)))
    assert result.status == ("fail" if count == 64 else "pass")


def test_one_column_in_another_unit_is_a_warning() -> None:
    other = noise(64, 4, seed=1)
    other[:, 1] *= 1000
    result = judge(table(noise(64, 4), other))
    assert result.status == "warn"
    assert "column 1" in messages(result)


@pytest.mark.parametrize(
    "shifted",
    [
        lambda x: x + 2,
        lambda x: 3 * x,
        lambda x: torch.cat([x[:-1], 500 + x[-1:]]),
    ],
)
def test_shifts_that_happen_by_nature(shifted: Any) -> None:
    assert judge(table(noise(128, 4), shifted(noise(64, 4, seed=1)))).status == "pass"


def test_samples_that_are_standardised_one_by_one_share_no_statistics() -> None:
    def standard(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True, correction=0)

    model = nn.Sequential(nn.Conv1d(1, 4, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    one, two = standard(noise(64, 1, 400)), standard(noise(32, 1, 400, seed=1))
    target = Target(
        model, loader(one, torch.arange(64) % 2), CE, eval_loader=loader(two, torch.arange(32) % 2)
    )
    assert judge(target).status == "pass"


def test_a_step_that_prepares_batches_itself_may_read_other_evaluation_data() -> None:
    pixels = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0] / 127.5 - 1).mean((2, 3)), batch[1])

    target = Target(
        nn.Conv2d(3, 2, 3),
        loader(pixels, torch.arange(64) % 2),
        training_step=step,
        eval_loader=loader(pixels[:32] / 127.5 - 1, torch.arange(32) % 2),
    )
    assert judge(target).status == "pass"


def test_missing_values_are_left_to_another_check() -> None:
    x = noise(64, 4)
    x[3, 1] = float("nan")
    assert judge(table(x, x[:40].clone())).status == "pass"
