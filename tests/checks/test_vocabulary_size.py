"""vocabulary-size beyond its own examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import word_tokenizer

WORDS = [f"word{number}" for number in range(60)]


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="vocabulary-size", config=config)["vocabulary-size"]


def said(result: Result) -> str:
    return " ".join(finding.message for finding in result.findings)


class Mean(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids).mean(1))


def batches(ids: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(ids, torch.arange(len(ids)) % 2), batch_size=16)


def drawn(samples: int, below: int, length: int = 9) -> torch.Tensor:
    return torch.randint(below, (samples, length), generator=torch.Generator().manual_seed(0))


CE = nn.CrossEntropyLoss()


def test_one_id_late_in_the_data_is_named() -> None:
    ids = drawn(700, 50)
    ids[613, 4] = 50
    result = judge(Target(Mean(50), batches(ids), CE))
    assert result.status == "fail"
    assert result.findings[0].where == "train[613][0]"
    assert "1 of 700 samples" in said(result)


def test_it_does_not_need_the_step_to_succeed() -> None:
    ids = drawn(64, 50)
    ids[0, 0] = -7
    result = judge(Target(Mean(50), batches(ids), CE))
    assert result.status == "fail"
    assert "negative id, -7" in said(result)


def test_every_table_of_a_tabular_model_is_judged_by_its_own_column() -> None:
    class Tabular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(rows, 4) for rows in (5, 7, 90))
            self.head = nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([table(x[:, n]) for n, table in enumerate(self.tables)], dim=1))

    x = torch.stack([drawn(200, size, 1)[:, 0] for size in (5, 7, 90)], dim=1)
    assert judge(Target(Tabular(), batches(x), CE)).status == "pass"
    x[150, 1] = 7
    result = judge(Target(Tabular(), batches(x), CE))
    assert [f.message.split("`")[1] for f in result.findings if f.level == "fail"] == ["tables.1"]


@pytest.mark.parametrize(
    ("rows", "status"), [(64, "pass"), (128, "pass"), (192, "pass"), (193, "warn"), (4000, "warn")]
)
def test_a_padded_vocabulary_is_no_finding(rows: int, status: str) -> None:
    tokenizer = word_tokenizer(WORDS)
    result = judge(Target(Mean(rows), batches(drawn(64, 64)), CE, tokenizer=tokenizer))
    assert result.status == status


def test_options() -> None:
    target = Target(Mean(400), batches(drawn(64, 64)), CE, tokenizer=word_tokenizer(WORDS))
    assert judge(target).status == "warn"
    for option in ({"spare-rows": 500}, {"max-unreachable": 0.9}):
        assert judge(target, checks={"vocabulary-size": option}).status == "pass"


def test_tokens_that_come_with_the_checkpoint_and_are_not_used() -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    model = Mean(64)
    target = Target(model, batches(drawn(64, 64)), CE, tokenizer=tokenizer)
    assert judge(target).status == "fail"
    tokenizer.init_kwargs["added_tokens_decoder"] = {64: "<image>"}
    tokenizer.name_or_path = model.name_or_path = "some/checkpoint"  # type: ignore[assignment]
    result = judge(target)
    assert result.status == "pass"
    assert "the checkpoint comes like that" in said(result)


def test_without_data_the_tokenizer_is_held_against_the_embedding() -> None:
    assert judge(Target(Mean(64), tokenizer=word_tokenizer(WORDS))).status == "pass"
    assert judge(Target(Mean(40), tokenizer=word_tokenizer(WORDS))).status == "fail"


def test_nothing_to_look_at_is_a_skip() -> None:
    assert judge(Target(nn.Linear(3, 2), [(torch.randn(4, 3), torch.zeros(4).long())], CE)).status == "skip"


def test_hashed_ids_are_not_followed() -> None:
    class Hashed(Mean):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids % 50)

    result = judge(Target(Hashed(50), batches(drawn(64, 10_000)), CE))
    assert result.status == "pass"
    assert "the step makes itself" in said(result)


def test_places_of_answers_are_no_tokens_to_write() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    rows: Any = [
        {"input_ids": ids, "start_positions": torch.tensor(2 + place % 5), "end_positions": torch.tensor(9)}
        for place, ids in enumerate(drawn(48, 80))
    ]
    target = Target(transformers.BertForQuestionAnswering(config).train(), DataLoader(rows, batch_size=8))
    assert judge(target, seed=1).status == "pass"
