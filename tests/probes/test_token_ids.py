"""Token ids of all rows: padding, masks, sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from debugkit import Target
from debugkit.errors import Unavailable
from debugkit.probes.samples import Samples
from debugkit.probes.stream import TrainStream
from debugkit.probes.token_ids import TokenIds
from debugkit.sandbox import Sandbox
from debugkit.testing import word_tokenizer

LENGTHS = (3, 5, 9, 4, 7, 9, 2, 6)


def ids_of(*batches: Any, tokenizer: Any = None) -> TokenIds:
    target = Target(torch.nn.Linear(2, 2), list(batches), tokenizer=tokenizer)
    with Sandbox(target) as sandbox:
        return TokenIds.collect(target, Samples.collect(target, TrainStream.collect(target, sandbox)))


def rows(pad: int, side: str = "right", end: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in LENGTHS:
        row = torch.randint(10, 40, (length,), generator=generator).tolist()
        row[-1] = row[-1] if end is None else end
        fill = [pad] * (9 - length)
        found.append(row + fill if side == "right" else fill + row)
    return torch.tensor(found)


@pytest.mark.parametrize(("side", "pad"), [("right", 0), ("left", 0), ("right", 7)])
def test_padding_is_learned_from_runs(side: str, pad: int) -> None:
    found = ids_of((rows(pad, side), torch.zeros(8)))
    assert (found.path, found.pad, found.certain, found.side) == ("[0]", pad, True, side)
    assert found.lengths.tolist() == list(LENGTHS)


def test_an_id_within_the_text_is_no_padding() -> None:
    ids = rows(0)
    ids[:, 1] = 0
    assert ids_of((ids, torch.zeros(8))).pad is None


def test_the_mask_tells_of_an_end_that_is_also_padding() -> None:
    ids = rows(3, end=3)
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in LENGTHS])
    tokenizer = word_tokenizer([str(n) for n in range(40)])
    tokenizer.pad_token = tokenizer.sep_token
    tokenizer.eos_token = tokenizer.sep_token
    for batch in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}):
        found = ids_of(batch, tokenizer=tokenizer)
        assert (found.pad, found.certain) == (3, False)
        assert found.lengths.tolist() == list(LENGTHS)
        assert not found.uncovered.any()
        assert not found.hidden.any()


def test_masks_that_disagree() -> None:
    ids = rows(0)
    right = (ids != 0).long()
    found = ids_of({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert found.uncovered.sum() == (ids == 0).sum()
    found = ids_of({"input_ids": ids, "attention_mask": 1 - right})
    assert found.hidden.tolist() == list(LENGTHS)
    found = ids_of({"input_ids": ids, "key_padding_mask": ids == 0})
    assert found.inverted
    assert not found.uncovered.any()


def test_masks_of_tuples_are_known_by_their_values() -> None:
    ids = rows(0)
    assert ids_of((ids, (ids != 0).long(), torch.zeros(8))).mask == "[1]"
    assert ids_of((ids, ids == 0, torch.zeros(8))).inverted
    assert ids_of((ids, torch.ones_like(ids), torch.zeros(8))).uncovered.any()
    assert ids_of((ids, (ids % 2 == 0).long(), torch.zeros(8))).mask is None


def test_choices_are_rows_of_their_own() -> None:
    ids = rows(0).view(4, 2, 9)
    found = ids_of({"input_ids": ids, "labels": torch.zeros(4)})
    assert found.lengths.tolist() == list(LENGTHS)
    assert found.samples.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_no_ids() -> None:
    with pytest.raises(Unavailable, match="no token ids"):
        ids_of((torch.randn(4, 3), torch.zeros(4)))
    with pytest.raises(Unavailable, match="no token ids"):
        ids_of((torch.arange(9).expand(4, 9), torch.zeros(4)))
