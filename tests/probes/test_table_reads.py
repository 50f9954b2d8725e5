"""Which tables a step reads, and what feeds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.errors import Unavailable
from debugkit.probes.batches import Batches
from debugkit.probes.table_reads import TableReads
from debugkit.sandbox import Sandbox
from debugkit.tracing.table_sources import Source


def reads_of(model: nn.Module, batch: Any, step: Any) -> TableReads:
    target = Target(model, [batch], training_step=step)
    with Sandbox(target) as sandbox:
        return TableReads.collect(target, sandbox, Batches((batch,)), None)


def drawn(*shape: int, below: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


class Table(nn.Module):
    def __init__(self, rows: int = 50) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 4)
        self.places = nn.Embedding(20, 4)
        self.slice = nn.Parameter(torch.zeros(1, 16, 4))


def test_sequences_whole_shifted_and_turned() -> None:
    ids = drawn(4, 9, below=50)
    steps = {
        "whole": lambda m, b: m.table(b["input_ids"]).sum(),
        "without the end": lambda m, b: m.table(b["input_ids"][:, :-1]).sum(),
        "moved": lambda m, b: m.table(b["input_ids"].roll(1, 1).index_fill(1, torch.tensor([0]), 0)).sum(),
        "turned": lambda m, b: m.table(b["input_ids"].T).sum(),
        "by index": lambda m, b: m.table.weight[b["input_ids"]].sum(),
    }
    for step in steps.values():
        (read,) = reads_of(Table(), {"input_ids": ids}, step).reads
        assert (read.table, read.rows, read.source) == ("table", 50, Source("input_ids"))


def test_an_offset_is_seen() -> None:
    (read,) = reads_of(Table(), [drawn(4, 9, below=40)], lambda m, b: m.table(b[0] + 2).sum()).reads
    assert read.source == Source("[0]", offset=2)


def test_columns_of_a_table_of_numbers_are_told_apart() -> None:
    kinds = torch.stack([drawn(16, below=7), drawn(16, below=9, seed=1)], dim=1)
    values = torch.cat([torch.randn(16, 2), kinds.float()], dim=1)
    found = reads_of(
        Table(), (values, kinds, torch.zeros(16)), lambda m, b: m.table(b[0][:, 2].long()).sum()
    ).reads
    assert [read.source for read in found] == [None]  # two columns hold it
    found = reads_of(Table(), {"x": values}, lambda m, b: m.table(b["x"][:, 3].long()).sum()).reads
    assert [read.source for read in found] == [Source("x", 3)]


def test_numbers_that_the_step_makes_have_no_source() -> None:
    found = reads_of(
        Table(), {"input_ids": drawn(4, 9, below=50)}, lambda m, b: m.table(b["input_ids"] % 7).sum()
    )
    assert [read.source for read in found.reads] == [None]


def test_a_row_that_is_not_there_does_not_stop_the_step() -> None:
    ids = drawn(4, 9, below=50)
    ids[2, 3] = 50
    found = reads_of(
        Table(),
        {"input_ids": ids},
        lambda m, b: m.table(b["input_ids"]).sum() + m.places(b["input_ids"][:, :1]).sum(),
    )
    assert found.failure is None
    assert (found.reads[0].fits, found.reads[0].bad_sample) == (False, 2)
    assert len(found.reads) == 2


@pytest.mark.parametrize(
    ("look", "limit"),
    [
        (lambda m, n: m.places(torch.arange(n)), 20),
        (lambda m, n: m.places(torch.arange(n) + 2), 18),
        (lambda m, n: m.slice[:, :n], 16),
        (lambda m, n: m.slice[:, : n + 1], 15),
    ],
)
def test_positions_are_counted_from_where_they_begin(look: Any, limit: int) -> None:
    def step(model: Any, batch: Any) -> torch.Tensor:
        return model.table(batch["input_ids"]).sum() + look(model, batch["input_ids"].shape[1]).sum()

    found = reads_of(Table(), {"input_ids": drawn(4, 9, below=50)}, step)
    (read,) = found.positions
    assert read.positions is not None
    assert (read.positions.path, read.positions.limit, read.positions.counts_padding) == (
        "input_ids",
        limit,
        True,
    )


def test_positions_that_leave_padding_out() -> None:
    ids = drawn(4, 9, below=49) + 1
    ids[1:, 5:] = 0

    def step(model: Any, batch: Any) -> torch.Tensor:
        seen = (batch["input_ids"] != 0).long()
        return model.places(seen.cumsum(1) * seen + 1).sum()

    (read,) = reads_of(Table(), {"input_ids": ids}, step).positions
    assert read.positions is not None
    assert (read.positions.limit, read.positions.counts_padding) == (18, False)


def test_classes_of_a_loss_come_from_the_labels() -> None:
    ids = drawn(4, 9, below=50)

    def step(model: Any, batch: Any) -> torch.Tensor:
        scores = model.table(batch["input_ids"]) @ model.table.weight.T
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    found = reads_of(Table(), {"input_ids": ids, "labels": ids.clone()}, step)
    (classes,) = [read for read in found.reads if read.kind == "classes"]
    assert (classes.rows, classes.source) == (50, Source("labels", is_label=True))


def test_nothing_to_look_up() -> None:
    with pytest.raises(Unavailable, match="no whole numbers"):
        reads_of(nn.Linear(3, 1), (torch.randn(4, 3), torch.zeros(4)), lambda m, b: m(b[0]).sum())


def test_positions_that_start_again_in_a_row_do_not_count_along_it() -> None:
    batch = {"input_ids": drawn(4, 18, below=50), "position_ids": torch.arange(18).remainder(9).repeat(4, 1)}
    found = reads_of(Table(), batch, lambda m, b: m.places(b["position_ids"]).sum())
    assert not found.positions
    along = {**batch, "position_ids": torch.arange(18).repeat(4, 1)}
    assert reads_of(Table(), along, lambda m, b: m.places(b["position_ids"]).sum()).positions
