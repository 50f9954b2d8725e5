"""Which samples are picked to be memorised."""

from __future__ import annotations

import pytest
import torch

from debugkit.data.subset import few_samples, trim


def test_the_samples_cover_the_labels() -> None:
    y = torch.tensor([0] * 30 + [1, 2])
    ((_, picked),) = few_samples([(torch.randn(32, 3), y)], 4)
    assert set(picked.tolist()) == {0, 1, 2}


def test_maps_with_positives_are_preferred() -> None:
    maps = torch.zeros(32, 1, 4, 4)
    maps[[5, 9], 0, 1, 1] = 1
    ((_, picked),) = few_samples([(torch.randn(32, 3), maps)], 4)
    assert picked.flatten(1).amax(1).sum() == 2


def test_the_batch_with_more_of_the_rare_label_is_preferred() -> None:
    batches = [(torch.randn(8, 3), (torch.arange(8) < rare).long()) for rare in (1, 3, 2)]
    ((_, picked),) = few_samples(batches, 8)
    assert picked.sum() == 3


def test_small_batches_are_added_up() -> None:
    batches = [(torch.randn(2, 3), torch.tensor([0, 1])) for _ in range(5)]
    assert len(few_samples(batches, 6)) == 3


@pytest.mark.filterwarnings("ignore:Sparse")
def test_layouts_that_cannot_be_cut_stay_whole() -> None:
    batch = (torch.eye(8).to_sparse_csr(), torch.arange(8))
    assert few_samples([batch], 4) == [batch]


def test_padding_of_every_row_is_dropped() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": mask}
    assert trim(batch, 64)["input_ids"].shape == (2, 3)
