"""Rows: what is kept of each sample, and what makes two samples the same."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from debugkit.data.rows import RowReader, Rows


def read(*batches: Any, drawn: Any = None) -> Rows:
    reader = RowReader("train")
    for batch in batches:
        reader.add(batch)
    return reader.read(True, drawn)


Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    ("batch", "columns", "labels"),
    [
        ((torch.zeros(4, 3), torch.zeros(4)), {"[0]", "[1]"}, {"[1]"}),
        ([torch.zeros(4, 3), [0, 1, 0, 1]], {"[0]", "[1]"}, {"[1]"}),
        ({"input_ids": torch.zeros(4, 3), "labels": torch.zeros(4)}, {"input_ids", "labels"}, {"labels"}),
        (Pair(torch.zeros(4, 3), np.zeros(4)), {"x", "y"}, {"y"}),
        (torch.zeros(4, 3), {""}, set()),
        (([torch.zeros(3, 5), torch.zeros(3, 7)], torch.zeros(2)), {"[0]", "[1]"}, {"[1]"}),
        (
            ([torch.zeros(3, 5)] * 2, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}] * 2),
            {"[0]", "[1][].boxes", "[1][].labels"},
            {"[1][].boxes", "[1][].labels"},
        ),
        ([{"x": torch.zeros(3)}, {"x": torch.ones(3)}], {"[].x"}, set()),
        ({"x": {"a": torch.zeros(4, 3)}, "n": torch.tensor(1.0), "y": torch.zeros(4)}, {"x.a", "y"}, {"y"}),
    ],
)
def test_batches_of_any_shape_become_columns(batch: Any, columns: set[str], labels: set[str]) -> None:
    rows = read(batch)
    assert set(rows.columns) == columns
    assert {column.path for column in rows.labels} == labels
    assert rows.count in (2, 4)


@pytest.mark.parametrize(
    "batch", [None, "text", 3, [], {}, (), torch.tensor(1.0), object(), torch.zeros(2, 2).to_sparse()]
)
def test_nothing_to_read_is_no_error(batch: Any) -> None:
    assert not read(batch).columns


def test_statistics_leave_out_what_is_not_finite() -> None:
    x = torch.tensor([[1.0, 3.0], [float("nan"), 2.0], [float("inf"), float("nan")]])
    column = read((x, torch.zeros(3))).columns["[0]"]
    assert column.nonfinite.tolist() == [0, 1, 2]
    assert column.mean[:2].tolist() == [2.0, 2.0]
    assert np.isnan(column.mean[2])


def test_padding_does_not_make_samples_differ() -> None:
    short = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    long = {"input_ids": torch.tensor([[5, 6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    assert len(set(read(short, long).digests)) == 1
    bare = [{key: value for key, value in each.items() if key == "input_ids"} for each in (short, long)]
    assert len(set(read(*bare).digests)) == 1
    other = {**long, "input_ids": torch.tensor([[5, 6, 7, 0]])}
    assert len(set(read(short, other).digests)) == 2


def test_the_longest_row_of_a_batch_equals_its_padded_twin() -> None:
    text = [5, 6, 7, 9]
    padded = torch.tensor([[*text, 0, 0], [3, 4, 8, 0, 0, 0], [4, 3, 8, 0, 0, 0], [8, 5, 4, 1, 6, 5]])
    longest = torch.tensor([[2, 8, 7, 0], [3, 8, 0, 0], text, [1, 4, 6, 0]])
    rows = read({"input_ids": padded}, {"input_ids": longest})
    assert rows.digests[0] == rows.digests[6]
    assert len(set(rows.digests)) == 7


def test_equal_tokens_at_the_end_are_no_padding_under_a_mask() -> None:
    short = {"input_ids": torch.tensor([[5, 6, 6]]), "attention_mask": torch.ones(1, 3).long()}
    long = {"input_ids": torch.tensor([[5, 6, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    assert len(set(read(short, long).digests)) == 1


def test_names_and_running_numbers_are_no_content() -> None:
    batch = {"x": torch.ones(4, 3), "idx": torch.arange(4), "file": ["a.png", "b.png", "c.png", "d.png"]}
    assert len(set(read(batch).digests)) == 1


def test_samples_are_named_by_their_place_in_the_data_set() -> None:
    batch = (torch.zeros(2, 3), torch.zeros(2))
    assert read(batch, batch, drawn=[[7, 3], [1, 9]]).name(2, "[0]") == "train[1][0]"
    assert read(batch).name(1) == "train[1]"
    assert read({"x": torch.zeros(2, 3)}).name(1, "x") == "train[1].x"


def test_large_rows_are_thinned_out_but_hashed_in_full() -> None:
    images = torch.zeros(2, 3, 200, 200)
    images[1, 0, 199, 199] = 1
    column = read(images).columns[""]
    assert column.reduced
    assert column.maximum.tolist() == [0, 1]
    assert len(set(column.digests)) == 2
    assert all(value.numel() <= 2**14 for value in column.values)
