"""Batches of every shape."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch

from debugkit.data.batch import fresh, input_ids, map_tensors, named, size, sliceable, split, take, tensors

X, Y = torch.arange(12.0).view(4, 3), torch.tensor([0, 1, 0, 1])


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Sample(NamedTuple):
    text: torch.Tensor
    image: torch.Tensor
    label: torch.Tensor


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor
    ids: list[str] = dataclasses.field(default_factory=lambda: ["a", "b", "c", "d"])


def encoding() -> Any:
    from transformers import BatchEncoding

    return BatchEncoding({"input_ids": X.long(), "labels": Y})


class Moving:
    """An object that only knows `to`, as graph libraries have them."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, device: Any) -> Moving:
        return Moving(self.x.to(device))


SHAPES = {
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"x": X, "labels": Y},
    "ordered dict": OrderedDict(x=X, labels=Y),
    "default dict": defaultdict(list, {"x": X, "labels": Y}),
    "named tuple": Pair(X, Y),
    "dataclass": Record(X, Y),
    "nested": ({"x": X}, Y),
    "deep": [{"x": [X, (X, X)]}, Y],
}


@pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)
def test_every_shape_keeps_its_type(batch: Any) -> None:
    doubled = map_tensors(batch, lambda t: t * 2)
    assert type(doubled) is type(batch) or isinstance(doubled, dict)
    for (path, one), (other_path, other) in zip(tensors(batch), tensors(doubled), strict=True):
        assert path == other_path
        assert torch.equal(one * 2, other)


@pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)
def test_every_shape_has_a_size_and_rows(batch: Any) -> None:
    assert size(batch) == 4
    assert sliceable(batch)
    some = take(batch, [2, 0])
    assert size(some) == 2
    inputs, labels = split(some)
    assert torch.equal(labels, Y[[2, 0]])
    assert torch.equal(next(tensors(inputs))[1], X[[2, 0]])


def test_batch_encoding() -> None:
    batch = encoding()
    inputs, labels = split(take(batch, [1, 2]))
    assert type(inputs) is type(batch)
    assert labels.tolist() == [1, 0]
    ids = input_ids(batch)
    assert ids is not None
    assert ids.shape == (4, 3)


def test_take_cuts_plain_lists_as_long_as_the_batch() -> None:
    assert take(Record(X, Y), [3, 1]).ids == ["d", "b"]
    assert take({"x": X, "text": ["a", "b", "c", "d"]}, [0, 2])["text"] == ["a", "c"]
    assert take((X, ("a", "b", "c", "d")), [0, 2])[1] == ("a", "c")
    assert take({"x": X, "names": ["height", "width"]}, [0])["names"] == ["height", "width"]


@pytest.mark.parametrize(
    ("batch", "inputs", "labels"),
    [
        ((X, Y), X, Y),
        ((X, X, Y), (X, X), Y),
        ([X], X, None),
        (X, X, None),
        ({"x": X}, {"x": X}, None),
        ({"x": X, "labels": None}, {"x": X, "labels": None}, None),
        ({"x": X, "label": Y}, {"x": X}, Y),
        (Pair(X, Y), {"x": X}, Y),
        (Sample(X, X, Y), {"text": X, "image": X}, Y),
        (((X, X), Y), (X, X), Y),
    ],
    ids=[
        "pair",
        "three",
        "one",
        "bare",
        "no labels",
        "labels none",
        "label",
        "named pair",
        "named",
        "nested",
    ],
)
def test_split(batch: Any, inputs: Any, labels: Any) -> None:
    found, given = split(batch)
    assert given is labels
    assert type(found) is type(inputs)
    assert [id(t) for _, t in tensors(found)] == [id(t) for _, t in tensors(inputs)]


def test_a_fresh_batch_can_be_written_to() -> None:
    batch = {"x": X.clone(), "labels": Y}
    copy = fresh(batch, torch.device("cpu"))
    copy["x"].zero_()
    copy["x"].requires_grad_()
    copy.pop("labels")
    assert torch.equal(batch["x"], X)
    assert not batch["x"].requires_grad
    assert "labels" in batch


def test_objects_that_only_know_to() -> None:
    assert fresh(Moving(X), torch.device("meta")).x.device.type == "meta"
    assert fresh(Moving(X), torch.device("cpu")).x.device.type == "cpu"


def test_paths_and_names() -> None:
    batch = ({"text": {"attention_mask": X}}, [Y])
    assert [path for path, _ in tensors(batch)] == ["[0].text.attention_mask", "[1][0]"]
    assert named(batch, "attention_mask") is X
    assert named(batch, "mask") is None


def test_sizes_that_disagree() -> None:
    assert size({"x": X, "y": Y, "scale": torch.ones(7)}) == 4
    assert not sliceable({"x": X, "scale": torch.ones(7)})
    assert size(["a", "b"]) == 2
    assert size(torch.tensor(1.0)) is None
    assert size({}) is None
