"""The bounded scan and the kinds of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from debugkit import Target
from debugkit.data.labels import LabelReader, Labels
from debugkit.errors import Broken
from debugkit.probes.samples import Samples
from debugkit.probes.stream import TrainStream
from debugkit.sandbox import Sandbox


def scan(loader: Any, **options: Any) -> Samples:
    target = Target(torch.nn.Linear(2, 2), loader)
    with Sandbox(target) as sandbox:
        return Samples.collect(target, TrainStream.collect(target, sandbox), **options)


def labels_of(*batches: Any) -> Labels:
    reader = LabelReader()
    for batch in batches:
        reader.add(batch)
    return reader.read()


def numbered(count: int, y: torch.Tensor, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(count, 2), y), **options)


def test_scan_reads_small_data_to_the_end() -> None:
    samples = scan(numbered(100, torch.arange(100) % 4, batch_size=32))
    assert (samples.scanned, samples.complete, samples.spread) == (100, True, None)
    assert samples.labels.counts == dict.fromkeys(range(4), 25)


def test_scan_that_stops_at_the_last_batch_is_complete() -> None:
    samples = scan(numbered(64, torch.arange(64) % 2, batch_size=32), max_samples=64)
    assert samples.complete


def test_scan_is_bounded_in_samples() -> None:
    samples = scan(numbered(1000, torch.arange(1000) % 2, batch_size=10, shuffle=True), max_samples=100)
    assert (samples.scanned, samples.complete, samples.spread) == (100, False, None)


def test_scan_is_bounded_in_time() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield torch.randn(2), 1

    samples = scan(DataLoader(Endless(), batch_size=4), max_seconds=0.2, max_samples=10**9)
    assert not samples.complete
    assert samples.scanned > 0


def test_sorted_data_is_judged_by_samples_from_all_over() -> None:
    samples = scan(numbered(1000, (torch.arange(1000) >= 500).long(), batch_size=10), max_samples=100)
    assert samples.labels.counts == {0: 100}
    counts = samples.representative.counts or {}
    assert sum(counts.values()) == 256
    assert min(counts[0], counts[1]) > 90


def test_a_loader_that_raises_in_the_middle_is_broken() -> None:
    class Corrupt(Dataset[Any]):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Any:
            if index > 70:
                raise OSError("truncated file")
            return torch.randn(2), index % 2

    with pytest.raises(Broken, match="truncated file"):
        scan(DataLoader(Corrupt(), batch_size=10))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (torch.tensor([0, 1, 2, 1]), "classes"),
        (torch.tensor([[0], [1], [2], [1]]), "classes"),
        (torch.tensor([0.0, 1.0, 1.0, 0.0]), "classes"),
        (torch.tensor([[0.0], [1.0], [1.0], [0.0]]), "classes"),
        (torch.tensor([True, False, True, True]), "classes"),
        (torch.tensor([-1.0, 1.0, 1.0, -1.0]), "classes"),
        (torch.eye(3)[[0, 1, 2, 1]], "classes"),
        (torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]), "multi-label"),
        (torch.tensor([0.1, 2.5, -3.0, 1.0]), "values"),
        (torch.tensor([3.0, 4.0, 5.0, 1.0]), "values"),
        (torch.randn(4, 3), "values"),
        (torch.randint(5, (4, 8, 8)), "pixels"),
        (torch.randint(2, (4, 1, 8, 8)).float(), "pixels"),
        (torch.rand(4, 3, 8, 8), "values"),
        ([0, 1, 0, 1], "classes"),
        ([{"boxes": torch.zeros(1, 4)}] * 4, "other"),
        ({"boxes": torch.zeros(4, 4)}, "other"),
        (["a", "b", "c", "d"], "other"),
        (torch.zeros(4, dtype=torch.complex64), "other"),
    ],
)
def test_kind(labels: Any, kind: str) -> None:
    assert labels_of((torch.randn(4, 3), labels)).kind == kind


def test_no_labels() -> None:
    assert labels_of(torch.randn(4, 3)).kind == "none"
    assert labels_of({"x": torch.randn(4, 3), "labels": None}).kind == "none"
    spans = {
        "input_ids": torch.ones(4, 9).long(),
        "start_positions": torch.ones(4),
        "end_positions": torch.ones(4),
    }
    assert labels_of(spans).kind == "none"


def test_ignored_classes_are_left_out() -> None:
    assert labels_of((torch.randn(4, 3), torch.tensor([0, 1, -100, 1]))).counts == {0: 1, 1: 2}


def test_an_attention_mask_at_the_end_of_a_tuple_is_no_label() -> None:
    mask = (torch.arange(6) < torch.tensor([[6], [3], [4]])).long()
    assert labels_of((torch.randint(50, (3, 6)), mask)).kind == "other"


@pytest.mark.parametrize("shift", [0, 1])
def test_language_model(shift: int) -> None:
    tokens = torch.randint(5, 50, (4, 20))
    ids, labels = tokens[:, : 20 - shift], tokens[:, shift:].clone()
    labels[0, -5:] = -100
    assert labels_of({"input_ids": ids, "labels": labels}).kind == "tokens"
    assert labels_of((ids, labels)).kind == "tokens"


def test_masked_language_model() -> None:
    ids = torch.randint(5, 40, (8, 40))
    hidden = torch.rand(8, 40) < 0.15
    labels = ids.masked_fill(~hidden, -100)
    assert labels_of({"input_ids": ids.masked_fill(hidden, 4), "labels": labels}).kind == "tokens"


def test_sequence_to_sequence() -> None:
    batch = {"input_ids": torch.randint(5, 40, (8, 12)), "labels": torch.randint(5, 40, (8, 9))}
    assert labels_of(batch).kind == "tokens"


def test_tags() -> None:
    ids = torch.randint(5, 5000, (8, 40))
    tags = torch.randint(0, 5, (8, 40))
    tags[:, 30:] = -100
    found = labels_of({"input_ids": ids, "labels": tags})
    assert found.kind == "tags"
    assert set(found.counts or ()) == {0, 1, 2, 3, 4}
    assert labels_of((torch.randn(8, 40, 16), tags)).kind == "tags"


def test_the_next_token_after_a_context() -> None:
    tokens = (torch.rand(500, generator=torch.Generator().manual_seed(0)) ** 3 * 27).long()
    windows = tokens.unfold(0, 4, 1)
    assert labels_of((windows[:, :3], windows[:, 3])).kind == "tokens"
    assert labels_of((torch.randint(5000, (64, 12)), torch.arange(64) % 20)).kind == "classes"


def test_reconstructed_inputs_are_values() -> None:
    x = (torch.rand(16, 20) > 0.9).float()
    assert labels_of((x, x)).kind == "values"
    noisy = (torch.rand(16, 64) > 0.9).float()
    assert labels_of((noisy + 0.1, noisy)).kind == "values"
