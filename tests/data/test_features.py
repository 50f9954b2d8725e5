"""Cheap features, and the answers that they are to tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from debugkit.data.answers import answers_of
from debugkit.data.bags import Bag
from debugkit.data.feature_blocks import Feature, words
from debugkit.data.features import FeatureMap
from debugkit.data.labels import LabelReader
from debugkit.data.rows import RowReader, Rows
from debugkit.errors import Unavailable


def read(*batches: Any) -> Rows:
    reader = RowReader("train")
    for batch in batches:
        reader.add(batch)
    return reader.read(True)


def ids(*rows: list[int]) -> list[Any]:
    return [np.array(row, dtype=np.int64) for row in rows]


def test_a_bag_leaves_out_what_is_rare_or_everywhere() -> None:
    rows = ids([1, 2, 3], [1, 2, 4], [1, 2, 5], [1, 3, 9])
    assert Bag.of(rows, "token").terms() == [((2,), None)]
    assert Bag.of(rows, "token").matrix(rows)[:, 0].tolist() == [1, 1, 1, 0]


def test_pairs_and_places_keep_the_order() -> None:
    rows = ids([7, 8, 1], [7, 8, 2], [7, 8, 3], [8, 7, 4])
    assert ((7, 8), None) in Bag.of(rows, "pair").terms()
    places = Bag.of(rows, "place")
    assert ((7,), 0) in places.terms()
    assert places.matrix(ids([7, 7, 7]))[0, places.terms().index(((7,), 0))] == 1


def test_long_rows_count_places_from_both_ends() -> None:
    rows = [np.arange(40) % 7 + number for number in (0, 0, 0, 1)]
    assert {place for _, place in Bag.of(rows, "place").terms()} <= {*range(4), *range(-4, 0)}


def test_numbers_are_standardised_and_kept() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 100 + 7
    rows = read((x, torch.zeros(50)))
    features = FeatureMap(rows).read(rows)
    assert features is not None
    assert np.allclose(features.raw, x.numpy())
    assert np.allclose(features.matrix.std(0), 0.5)
    assert [column.index for column in features.columns] == [0, 1, 2, 3]


def test_padding_behind_a_mask_is_no_token() -> None:
    tokens = torch.tensor([[5, 6, 9, 9], [5, 7, 9, 9], [5, 6, 8, 9], [6, 6, 6, 6]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    features = FeatureMap(read({"input_ids": tokens, "attention_mask": mask, "labels": torch.zeros(4)})).read(
        read({"input_ids": tokens, "attention_mask": mask, "labels": torch.zeros(4)})
    )
    assert features is not None
    tokens_seen = {column.term for column in features.columns if column.kind == "token"}
    assert (5,) in tokens_seen
    assert (9,) not in tokens_seen


def test_texts_become_words() -> None:
    texts = ["good film , really", "bad film , really"] * 4
    rows = read((texts, torch.arange(8) % 2))
    columns = FeatureMap(rows).read(rows).columns  # type: ignore[union-attr]
    assert Feature("[0]", "token", term=("good",)) in columns
    assert words("It's 3 o'clock!") == ["it", "'", "s", "3", "o", "'", "clock", "!"]


def test_another_split_is_read_with_the_same_columns() -> None:
    train = read((torch.randn(20, 3), torch.zeros(20)))
    assert FeatureMap(train).read(read((torch.randn(5, 3), torch.zeros(5)))).matrix.shape == (5, 3)  # type: ignore[union-attr]
    assert FeatureMap(train).read(read((torch.randn(5, 4), torch.zeros(5)))) is None
    assert FeatureMap(train).read(read({"x": torch.randn(5, 3)})) is None


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(20, 3, 64, 64),
        torch.randn(20, 3000),
        torch.randn(20, 100, 30),
        torch.randn(20, 2, 3, 9, 9),
    ],
)
def test_wide_inputs_are_narrowed(x: torch.Tensor) -> None:
    rows = read((x, torch.zeros(20)))
    features = FeatureMap(rows).read(rows)
    assert features is not None
    assert 2 <= features.matrix.shape[1] <= 700


@pytest.mark.parametrize(
    "inputs",
    [torch.ones(8, 3), torch.full((8, 3), float("nan")), torch.zeros(8, 0), {"idx": torch.arange(8)}],
)
def test_inputs_that_tell_nothing_give_no_features(inputs: Any) -> None:
    batch = {**inputs, "labels": torch.zeros(8)} if isinstance(inputs, dict) else (inputs, torch.zeros(8))
    assert not FeatureMap(read(batch))


@pytest.mark.parametrize(
    ("feature", "shown"),
    [
        (Feature("x", "number", 3), "`x`, value 3"),
        (Feature("x", "number"), "`x`"),
        (Feature("ids", "token", term=(5,)), "token `5` in `ids`"),
        (Feature("ids", "pair", term=(5, 6)), "tokens `5 6` in `ids`"),
        (Feature("t", "token", term=("a`b",)), "word `a'b` in `t`"),
        (Feature("ids", "place", term=(5,), place=-1), "token `5` at position 1 from the end of `ids`"),
        (Feature("colour", "category", term=(2,)), "`colour` == 2"),
        (Feature("x", "statistic"), "an average of `x`"),
    ],
)
def test_features_are_named(feature: Feature, shown: str) -> None:
    assert str(feature) == shown


def answers(*batches: Any) -> Any:
    labels = LabelReader()
    for batch in batches:
        labels.add(batch)
    return answers_of(read(*batches), labels.read())


X = torch.randn(6, 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0, 1, 2, 0, 1, 2]), [0, 1, 2, 0, 1, 2]),
        (torch.tensor([[0.0], [1.0]] * 3), [0, 1] * 3),
        (torch.eye(3).repeat(2, 1), [0, 1, 2] * 2),
        (["b", "a", "b", "a", "b", "a"], [1, 0] * 3),
        (torch.tensor([0.5, 1.5, 2.5, 0.1, 0.2, 0.3]), [0.5, 1.5, 2.5, 0.1, 0.2, 0.3]),
    ],
)
def test_one_answer_per_sample(labels: Any, expected: list[float]) -> None:
    assert answers((X, labels)).values.tolist() == pytest.approx(expected)


def test_ignored_labels_are_left_out() -> None:
    found = answers((X, torch.tensor([0, -100, 1, 1, -100, 0])))
    assert found.samples.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (torch.randint(0, 2, (6, 4)).float(), "multi-label"),
        (torch.randn(6, 3), "3 values"),
        ({"a": torch.zeros(6), "b": torch.zeros(6)}, "can't be read"),
    ],
)
def test_other_labels_are_refused(labels: Any, reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        answers({"x": X, "labels": labels})
