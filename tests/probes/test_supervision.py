"""Which tokens carry a label that counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from debugkit import Target, Unavailable
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.supervision import Supervision
from debugkit.sandbox import Sandbox

ROWS = [
    torch.randint(3, 40, (5 + n % 6,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(32)
]


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.memory = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(self.embedding(ids))[0])


def padded(rows: list[list[int]], value: int = 0) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def read(collate: Any, step: Any, rows: Any = ROWS) -> Supervision:
    target = Target(Writer(), DataLoader(rows, batch_size=16, collate_fn=collate), training_step=step)
    with Sandbox(target) as sandbox:
        found: Supervision = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(Supervision)
    return found


def shifting(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch["input_ids"])[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def test_labels_in_place_leave_out_the_first_token() -> None:
    found = read(lambda rows: {"input_ids": padded(rows), "labels": padded(rows, -100)}, shifting)
    assert (found.task, found.moved, found.by_value) == ("next", False, True)
    row = found.rows[0]
    assert row.supervised == (
        False,
        *[True] * (len(ROWS[0]) - 1),
        *[False] * (len(row.tokens) - len(ROWS[0])),
    )
    assert row.length == len(ROWS[0])


def test_an_ignored_label_is_seen_in_the_loss() -> None:
    def pairs(rows: list[list[int]]) -> Any:
        ids = padded(rows)
        return ids[:, :-1], ids[:, 1:]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], ignore_index=0)

    found = read(pairs, step)
    assert (found.task, found.moved) == ("next", True)
    assert found.ignored == {-100, 0}
    assert not any(
        s and not c for row in found.rows for s, c in zip(row.supervised, row.content, strict=True)
    )


def test_a_mask_in_the_batch_is_recognised() -> None:
    def batch(rows: list[list[int]]) -> Any:
        ids = padded(rows)
        weights = torch.zeros(ids.shape)
        weights[:, 3:] = 1
        return {"input_ids": ids, "weights": weights * (ids != 0), "labels": ids.clone()}

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        losses = F.cross_entropy(
            model(batch["input_ids"])[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
        )
        return (losses * batch["weights"][:, 1:]).sum() / batch["weights"].sum()

    found = read(batch, step)
    assert not found.by_value
    assert len(found.rows) == 32
    assert all(row.supervised[:3] == (False, False, False) for row in found.rows)
    assert all(sum(row.supervised) == row.length - 3 for row in found.rows)


def test_targets_that_the_step_makes_itself() -> None:
    def step(model: nn.Module, ids: Any) -> torch.Tensor:
        return F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])

    found = read(torch.stack, step, list(torch.randint(3, 40, (32, 9))))
    assert found.task == "next"
    assert all(row.supervised == (False, *[True] * 7) for row in found.rows)


def test_hidden_words_and_tags_are_told_apart() -> None:
    def masked(rows: list[list[int]]) -> Any:
        ids = padded(rows)
        hidden = (torch.arange(ids.shape[1]) % 3 == 1) & (ids != 0)
        return {"input_ids": ids.masked_fill(hidden, 2), "labels": ids.masked_fill(~hidden, -100)}

    def tagged(rows: list[list[int]]) -> Any:
        return {"input_ids": padded(rows), "labels": padded([[i % 3 for i in row] for row in rows], -100)}

    def in_place(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["input_ids"]).transpose(1, 2), batch["labels"])

    assert read(masked, in_place).task == "hidden"
    found = read(tagged, in_place)
    assert found.task == "tags"
    assert len(found.every_row()) == 32


def test_one_label_for_a_row_is_none_for_a_token() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["input_ids"]).mean(1), batch["labels"])

    with pytest.raises(Unavailable, match="token by token"):
        read(
            lambda rows: {"input_ids": padded(rows), "labels": torch.tensor([len(r) % 2 for r in rows])}, step
        )
