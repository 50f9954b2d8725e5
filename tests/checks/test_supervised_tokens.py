"""Labels that should not count, and those that should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result

ROWS = [
    [*torch.randint(3, 40, (5 + n % 6,), generator=torch.Generator().manual_seed(n)).tolist(), 2]
    for n in range(48)
]


class Writer(nn.Module):
    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16, padding_idx=padding_idx)
        self.memory = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(self.embedding(ids))[0])


def padded(rows: Any, value: int = 0) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])


def pairs(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids = padded([[1, *row] for row in rows])
    return ids[:, :-1], ids[:, 1:]


def judged(
    loss: Callable[..., Any], collate: Any = pairs, model: nn.Module | None = None, rows: Any = ROWS
) -> Result:
    loader: Any = DataLoader(rows, batch_size=16, collate_fn=collate)
    return debugkit.run(Target(model or Writer(), loader, loss), select="supervised-tokens")[
        "supervised-tokens"
    ]


def per_token(**options: Any) -> Callable[..., torch.Tensor]:
    return lambda scores, y: F.cross_entropy(scores.transpose(1, 2), y, **options)


def test_padding_is_told_from_rows_that_end_alike() -> None:
    result = judged(per_token())
    assert result.status == "warn"
    assert "padding (`0`)" in result.findings[0].message


def test_padding_that_the_model_declares_fails() -> None:
    assert judged(per_token(), model=Writer(padding_idx=0)).status == "fail"


@pytest.mark.parametrize(
    "loss",
    [
        per_token(ignore_index=0),
        lambda s, y: (F.cross_entropy(s.mT, y, reduction="none") * (y != 0)).sum() / (y != 0).sum(),
        lambda s, y: F.cross_entropy(s[y != 0], y[y != 0]),
    ],
)
def test_padding_may_be_left_out_in_any_way(loss: Any) -> None:
    assert judged(loss).status == "pass"


def test_half_the_rows_without_labels_are_a_note() -> None:
    def collate(rows: Any) -> Any:
        x, y = pairs(rows)
        y[::2] = 0
        return x, y

    assert judged(per_token(ignore_index=0), collate).status == "pass"


def test_most_rows_without_labels_are_a_warning() -> None:
    def collate(rows: Any) -> Any:
        x, y = pairs(rows)
        y[torch.arange(len(y)) % 4 > 0] = 0
        return x, y

    result = judged(per_token(ignore_index=0), collate)
    assert result.status == "warn"
    assert result.findings[0].measured["rows"] == 36


def test_no_label_at_all_fails() -> None:
    def collate(rows: Any) -> Any:
        ids = padded(rows)
        return ids, torch.full_like(ids, -100)

    result = judged(per_token(), collate)
    assert result.status == "fail"
    assert result.findings[0].measured["rows"] == 48


def test_an_autoencoder_may_read_what_it_writes() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 8)
            self.narrow = nn.Linear(64, 16)
            self.wide = nn.Linear(16, 8 * 40)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.wide(self.narrow(self.embedding(ids).flatten(1)).tanh()).view(-1, 8, 40)

    rows = list(torch.randint(3, 40, (48, 8), generator=torch.Generator().manual_seed(0)))

    def collate(picked: Any) -> Any:
        return torch.stack(picked), torch.stack(picked)

    assert judged(per_token(), collate, Bottleneck(), rows).status == "pass"


def test_labels_of_rows_are_skipped() -> None:
    result = judged(
        lambda scores, y: F.cross_entropy(scores.mean(1), y),
        lambda rows: (padded(rows), torch.tensor([len(row) % 2 for row in rows])),
    )
    assert result.status == "skip"
