"""Where data meets weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from debugkit.tracing.entries import Entry
from debugkit.tracing.trace import record


def entries(model: nn.Module, *inputs: torch.Tensor) -> tuple[Entry, ...]:
    with record(model) as recorder:
        model(*inputs)
    return recorder.entries


def test_the_first_layer_is_an_entry_and_the_second_is_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    images = torch.randn(5, 3, 8, 8) * 3 + 1
    (entry,) = entries(model, images)
    assert (entry.op, entry.module, entry.dims, entry.shape) == ("conv2d", "0", 2, (5, 3, 8, 8))
    assert entry.weight_shape == (4, 3, 3, 3)
    assert entry.mean == pytest.approx(float(images.mean()), rel=1e-4)
    assert entry.std == pytest.approx(float(images.std(correction=0)), rel=1e-4)
    assert (entry.minimum, entry.maximum) == (float(images.min()), float(images.max()))
    assert entry.sample is not None
    assert torch.equal(entry.sample, images)


@pytest.mark.parametrize(
    ("layer", "shape", "op"),
    [
        (nn.Linear(6, 2), (4, 6), "linear"),
        (nn.LSTM(6, 2, batch_first=True), (4, 5, 6), "lstm"),
        (nn.GRUCell(6, 2), (4, 6), "gru_cell"),
        (nn.Conv1d(3, 2, 3, padding="same"), (4, 3, 9), "conv1d"),
        (nn.ConvTranspose2d(3, 2, 2), (4, 3, 5, 5), "conv_transpose2d"),
    ],
)
def test_layers_of_all_kinds(layer: nn.Module, shape: tuple[int, ...], op: str) -> None:
    (entry,) = entries(layer, torch.randn(shape))
    assert entry.op == op
    assert entry.shape == shape


def test_weights_in_functions_and_parametrised_ones_count() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    assert entries(Product(), torch.randn(4, 6))[0].op == "matmul"
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
    assert entries(normed, torch.randn(4, 6))[0].op == "linear"


def test_numbers_beside_embeddings_are_an_entry_without_a_sample() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = nn.Embedding(9, 3)
            self.head = nn.Linear(5, 2)

        def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.names(ids), numbers], -1))

    (entry,) = entries(Table(), torch.randint(0, 9, (4,)), torch.full((4, 2), 5000.0))
    assert entry.maximum == 5000
    assert entry.sample is None


def test_products_without_weights_are_none() -> None:
    class Similarity(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.T

    assert entries(Similarity(), torch.randn(4, 6)) == ()


def test_a_normalising_layer_is_no_entry() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
    assert entries(model, torch.randn(8, 6) * 100) == ()


def test_values_under_a_transform_are_left_alone() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.func.vmap(self.layer)(x)

    assert entries(Mapped(), torch.randn(4, 6)) == ()


def test_samples_are_bounded() -> None:
    model = nn.Conv2d(3, 2, 3)
    (entry,) = entries(model, torch.randn(3, 3, 400, 400))
    assert entry.sample is not None
    assert len(entry.sample) == 2
