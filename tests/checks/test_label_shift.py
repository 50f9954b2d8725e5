"""Shifts of language models of transformers, and of models written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result

transformers = pytest.importorskip("transformers")

IDS = torch.randint(3, 40, (32, 12), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def judged(target: Target) -> Result:
    return debugkit.run(target, select="label-shift")["label-shift"]


def causal(batch_size: int = 16, **options: Any) -> Target:
    config = transformers.LlamaConfig(**SIZES, pad_token_id=0)
    rows = [{"input_ids": row, "labels": row.clone()} for row in IDS]
    return Target(transformers.LlamaForCausalLM(config), DataLoader(rows, batch_size=batch_size), **options)  # type: ignore[arg-type]


class Memory(nn.Module):
    def __init__(self, both_ways: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.memory = nn.GRU(16, 16, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(32 if both_ways else 16, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(self.embedding(ids))[0])


def by_token(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores.transpose(1, 2), y)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_causal_model_that_shifts_passes(batch_size: int, precision: str) -> None:
    result = judged(causal(batch_size, precision=precision))
    assert result.status == "pass"
    assert "token t + 1" in result.findings[0].message


def test_masked_words_have_no_shift() -> None:
    hidden = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    rows = [
        {"input_ids": x, "labels": y}
        for x, y in zip(IDS.masked_fill(hidden, 1), IDS.masked_fill(~hidden, -100), strict=True)
    ]
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    result = judged(Target(model, DataLoader(rows, batch_size=16)))  # type: ignore[arg-type]
    assert result.status == "skip"
    assert "hidden words" in (result.reason or "")


def test_next_tokens_in_sight_are_left_to_another_check() -> None:
    loader = DataLoader(TensorDataset(IDS[:, :-1], IDS[:, 1:]), batch_size=16)
    result = judged(Target(Memory(both_ways=True), loader, by_token))
    assert result.status == "pass"
    assert "not causal" in result.findings[0].message


def test_a_model_that_shifts_its_inputs_may_predict_them() -> None:
    class Shifting(Memory):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.memory(F.pad(self.embedding(ids), (0, 0, 1, -1)))[0])

    right = DataLoader(TensorDataset(IDS, IDS.clone()), batch_size=16)
    twice = DataLoader(TensorDataset(IDS[:, :-1], IDS[:, 1:]), batch_size=16)
    assert judged(Target(Shifting(), right, by_token)).status == "pass"
    result = judged(Target(Shifting(), twice, by_token))
    assert result.status == "fail"
    assert "sees no token after t - 1" in result.findings[0].message


def test_the_place_of_the_loss_is_named() -> None:
    loader = DataLoader(TensorDataset(IDS, IDS.clone()), batch_size=16)
    finding = judged(Target(Memory(), loader, by_token)).findings[0]
    assert (finding.level, finding.measured["shift"]) == ("fail", 0)
    assert finding.location is not None
    assert "test_label_shift.py" in finding.location


def test_classifiers_are_skipped() -> None:
    x = torch.randn(32, 8)
    target = Target(
        nn.Linear(8, 2), DataLoader(TensorDataset(x, (x[:, 0] > 0).long())), nn.CrossEntropyLoss()
    )
    assert judged(target).status == "skip"
