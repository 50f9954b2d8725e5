"""Which rows say that they hold several documents."""

from __future__ import annotations

import pytest
import torch

from debugkit.data.documents import documents

RESTARTED = torch.cat([torch.arange(3), torch.arange(5)]).expand(2, -1)
BLOCKS = torch.block_diag(torch.ones(3, 3), torch.ones(5, 5)).bool().tril()
WANTED = [0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("position_ids", RESTARTED),
        ("position_ids", RESTARTED + 2),
        ("cu_seqlens", torch.tensor([0, 3, 8, 11, 16])),
        ("attention_mask", torch.tensor(WANTED).expand(2, -1) + 1),
        ("document_ids", torch.tensor(WANTED).expand(2, -1)),
        ("attention_mask", BLOCKS.expand(2, 1, 8, 8)),
        ("attn_mask", torch.zeros(8, 8).masked_fill(~BLOCKS, float("-inf"))),
    ],
)
def test_packed_rows_are_recognised(name: str, tensor: torch.Tensor) -> None:
    found = documents({"input_ids": torch.ones(2, 8).long(), name: tensor}, 2, 8)
    assert found is not None
    assert found[1] == name
    assert found[0].tolist() == [WANTED, WANTED]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("position_ids", torch.arange(8).expand(2, -1)),
        ("position_ids", torch.tensor([[1, 1, 1, 0, 1, 2, 3, 4]] * 2)),
        ("position_ids", torch.tensor([[0, 1, 2, 3, 4, 0, 0, 0]] * 2)),
        ("token_type_ids", torch.tensor(WANTED).expand(2, -1)),
        ("attention_mask", torch.tensor([[1] * 5 + [0] * 3] * 2)),
        ("attention_mask", torch.ones(8, 8).bool().tril()),
        ("attention_mask", torch.ones(8, 8).triu(6).bool().logical_not()),
        ("columns", RESTARTED),
        ("pixels", torch.randn(2, 3, 8, 8)),
    ],
)
def test_other_rows_are_not(name: str, tensor: torch.Tensor) -> None:
    mask = torch.tensor([[1] * 5 + [0] * 3] * 2) if name == "position_ids" else torch.ones(2, 8).long()
    given = {name: tensor} if name == "attention_mask" else {"attention_mask": mask, name: tensor}
    assert documents(given, 2, 8) is None
