"""truncation beyond its own examples."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from debugkit.checks.tokenizer._cut_rows import are_pieces, cut_rows
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import word_tokenizer

transformers = pytest.importorskip("transformers")

WORDS = [f"word{number}" for number in range(40)]
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
Rows = list[list[int]]


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="truncation", config=config)["truncation"]


def said(result: Result) -> str:
    return " ".join(finding.message for finding in result.findings)


def rows(count: int, longest: int, shortest: int = 4, seed: int = 0) -> Rows:
    draw = random.Random(seed)
    return [[draw.randint(4, 43) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]


def batches(data: Rows, label: Callable[[list[int]], Any] = lambda row: sum(row) % 2) -> DataLoader[Any]:
    def collate(picked: Rows) -> dict[str, Any]:
        wide = max(map(len, picked))
        labels = [label(row) for row in picked]
        if isinstance(labels[0], list):
            most = max(map(len, labels))
            labels = [row + [-100] * (most - len(row)) for row in labels]
        return {
            "input_ids": torch.tensor([row + [0] * (wide - len(row)) for row in picked]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in picked]),
            "labels": torch.tensor(labels),
        }

    return DataLoader(data, batch_size=16, collate_fn=collate)  # type: ignore[arg-type]


def bert(positions: int = 64) -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=44, max_position_embeddings=positions, **TINY)
    )


def llama(positions: int = 64, **options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=44, max_position_embeddings=positions, pad_token_id=0, **TINY, **options
        )
    )


def test_rows_that_pile_up_at_one_length() -> None:
    whole = rows(200, 40)
    assert judge(Target(bert(), batches(whole))).status == "pass"
    result = judge(Target(bert(), batches([row[:20] for row in whole])))
    assert result.status == "warn"
    assert "exactly 20 tokens" in said(result)
    assert "up to the 64 positions" in (result.findings[0].hint or "")


@pytest.mark.parametrize(
    "lengths",
    [
        [32] * 60,
        [32] * 60 + [7],
        [5, 12] * 40,
        [3 + n % 7 for n in range(100)],
        [20 - (n % 3 == 0) - (n % 5 == 0) for n in range(100)],
        [12] * 15,
    ],
)
def test_lengths_that_are_no_cut(lengths: list[int]) -> None:
    assert cut_rows(np.array(lengths), [None] * len(lengths)) is None


def test_a_cut_in_the_tail_of_long_texts() -> None:
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(3, 0.5)) for _ in range(1500)]
    assert cut_rows(np.array(lengths), [None] * 1500) is None
    cut = cut_rows(np.minimum(lengths, 40), [None] * 1500)
    assert cut is not None
    assert cut.length == 40


def test_the_token_at_the_end_of_all_others() -> None:
    whole = [[*row, 3] for row in rows(120, 30)]
    tokenizer = word_tokenizer(WORDS)
    result = judge(Target(llama(), batches([row[:24] for row in whole], list), tokenizer=tokenizer))
    assert result.status == "warn"
    assert "lack the token at the end" in said(result)
    assert judge(Target(llama(), batches(whole, list))).status == "pass"


def test_pieces_of_documents_are_no_cut_texts() -> None:
    documents = [[*row, 3] for row in rows(40, 150, 10)]
    pieces = [row[at : at + 32] for row in documents for at in range(0, len(row), 32)]
    result = judge(Target(llama(), batches(pieces, list)))
    assert result.status == "pass"
    assert "pieces of longer texts" in said(result)
    lengths = np.array([len(row) for row in pieces])
    assert are_pieces(lengths, range(len(pieces)))
    assert not are_pieces(lengths, random.Random(0).sample(range(len(pieces)), len(pieces)))


def test_windows_that_overlap_are_no_cut_texts() -> None:
    draw = random.Random(0)
    windows = [row[at : at + 32] for row in rows(60, 90, 20) for at in range(0, max(1, len(row) - 12), 20)]
    draw.shuffle(windows)
    result = judge(Target(bert(), batches(windows)))
    assert result.status == "pass"
    assert "pieces of longer texts" in said(result)


def with_texts(max_length: int, side: str = "right", where: str = "dataset") -> Target:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.truncation_side = side
    texts = [" ".join(WORDS[index - 4] for index in row) for row in rows(96, 30)]

    def collate(picked: list[str]) -> dict[str, Any]:
        batch = dict(
            tokenizer(picked, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        )
        batch["labels"] = torch.tensor([len(text) % 2 for text in picked])
        return {**batch, "text": picked} if where == "batch" else batch

    data: Any = texts
    loader = DataLoader(data, batch_size=16, collate_fn=collate)
    keys = ("input_ids", "attention_mask", "labels")

    def step(model: Any, batch: Any) -> torch.Tensor:
        return model(**{key: batch[key] for key in keys}).loss

    return Target(bert(), loader, training_step=step, tokenizer=tokenizer)


@pytest.mark.parametrize("where", ["dataset", "batch"])
def test_texts_are_encoded_again(where: str) -> None:
    result = judge(with_texts(14, where=where))
    assert result.status == "warn"
    assert "at its end; the longest needs 32 tokens" in said(result)
    assert result.findings[0].hint == "`max_length=32` cuts 5 % or less"
    assert "at its beginning" in said(judge(with_texts(14, "left", where)))
    assert judge(with_texts(64, where=where)).status == "pass"


def prompts(most: int | None) -> tuple[Rows, Callable[[list[int]], list[int]]]:
    """Prompts, and an answer of ids from 30 on, of which only the answer has labels."""
    data = [[index % 26 + 4 for index in row] + [40, 41, 42, 3] for row in rows(100, 30)]
    return [row[:most] for row in data], lambda row: [i if i >= 40 or i == 3 else -100 for i in row]


def test_answers_that_were_cut_off() -> None:
    data, label = prompts(None)
    assert judge(Target(llama(), batches(data, label))).status == "pass"
    data, label = prompts(18)
    result = judge(Target(llama(), batches(data, label)))
    assert result.status == "fail"
    assert "no label is left" in said(result)


def test_positions_of_every_kind() -> None:
    data = rows(64, 40)
    for make in (bert, llama):
        label: Any = list if make is llama else lambda row: sum(row) % 2
        assert judge(Target(make(48), batches(data, label))).status == "pass"
        assert judge(Target(make(36), batches(data, label))).status == "fail"
    stretched = llama(20, rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert judge(Target(stretched, batches(data, list))).status == "pass"


def test_relative_positions_have_no_limit() -> None:
    config = transformers.T5Config(
        vocab_size=44, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config)
    assert judge(Target(model, batches(rows(32, 200), lambda row: row[:6]))).status == "pass"


def test_positions_that_begin_again_within_a_row() -> None:
    data = [[*a, *b] for a, b in zip(rows(64, 20), rows(64, 20, seed=1), strict=True)]

    def collate(picked: Rows) -> dict[str, Any]:
        (row,) = picked
        places = [*range(len(row) // 2), *range(len(row) - len(row) // 2)]
        return {
            key: torch.tensor([value])
            for key, value in (("input_ids", row), ("position_ids", places), ("labels", row))
        }

    loader: Any = DataLoader(data, batch_size=1, collate_fn=collate)  # type: ignore[arg-type]
    assert judge(Target(llama(24), loader)).status == "pass"


def test_without_ids_or_positions_it_is_a_skip() -> None:
    assert judge(Target(nn.Linear(3, 2), [(torch.randn(4, 3), torch.zeros(4).long())])).status == "skip"
