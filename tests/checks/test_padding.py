"""padding beyond its own examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="padding", config=config)["padding"]


def texts(count: int = 48, longest: int = 20) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(4, 50, (length,), generator=generator).tolist() for length in lengths]


def batches(
    change: Callable[[dict[str, Any]], Any] = lambda batch: batch,
    *,
    side: str = "right",
    pad: int = 0,
    width: int | None = None,
    tokens: bool = False,
) -> DataLoader[Any]:
    def collate(rows: list[list[int]]) -> Any:
        wide = width or max(map(len, rows))
        fills = [[pad] * (wide - len(row)) for row in rows]
        pairs = list(zip(rows, fills, strict=True))
        ids = torch.tensor([row + fill if side == "right" else fill + row for row, fill in pairs])
        mask = torch.tensor(
            [
                [1] * len(row) + [0] * len(fill) if side == "right" else [0] * len(fill) + [1] * len(row)
                for row, fill in pairs
            ]
        )
        labels = ids.masked_fill(mask == 0, -100) if tokens else torch.tensor([sum(row) % 2 for row in rows])
        return change({"input_ids": ids, "attention_mask": mask, "labels": labels})

    return DataLoader(texts(), batch_size=12, collate_fn=collate)  # type: ignore[arg-type]


def without_mask(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def with_ones(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


def bert(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, max_position_embeddings=64, **TINY, **options)
    )


def llama(kind: str = "LlamaForCausalLM", **options: Any) -> Any:
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **options}
    return getattr(transformers, kind)(
        transformers.LlamaConfig(vocab_size=50, max_position_embeddings=64, **TINY, **ids)
    )


def test_a_causal_model_needs_no_mask_for_padding_on_the_right() -> None:
    assert judge(Target(llama(), batches(without_mask, tokens=True))).status == "pass"
    assert judge(Target(llama(), batches(without_mask, tokens=True, side="left"))).status == "fail"


def test_rotary_positions_do_not_care_for_the_side() -> None:
    assert judge(Target(llama(), batches(tokens=True, side="left"))).status == "pass"
    assert judge(Target(bert(), batches(side="left"))).status == "warn"


def test_a_mask_of_ones_that_changes_nothing_is_a_note() -> None:
    result = judge(Target(llama(), batches(with_ones, tokens=True)))
    assert result.status == "pass"
    assert "do not depend on it" in result.findings[0].message
    assert judge(Target(bert(), batches(with_ones))).status == "fail"


def test_a_mask_that_the_step_makes() -> None:
    def step(model: Any, batch: Any) -> torch.Tensor:
        mask = (batch["input_ids"] != 0).long()
        return model(batch["input_ids"], attention_mask=mask, labels=batch["labels"]).loss

    assert judge(Target(bert(), batches(without_mask), training_step=step)).status == "pass"
    result = judge(
        Target(bert(), batches(), training_step=lambda m, b: m(b["input_ids"], labels=b["labels"]).loss)
    )
    assert result.status == "fail"
    assert "`attention_mask` of the batch" in (result.findings[0].hint or "")


class Reader(nn.Module):
    """Attention that is to leave out where ``mask`` is true."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32, padding_idx=0)
        self.mix = nn.MultiheadAttention(32, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(32) if batch_norm else nn.Identity()
        self.head = nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.words(ids)
        return self.head(self.norm(self.mix(hidden, hidden, hidden, key_padding_mask=mask)[0][:, 0]))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_sign_of_a_mask_is_learned_from_the_model(batch_norm: bool) -> None:
    def tuples(marks: bool) -> Any:
        return batches(lambda b: (b["input_ids"], (b["input_ids"] == 0) == marks, b["labels"]))

    def step(model: Any, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0], batch[1]), batch[2])

    assert judge(Target(Reader(batch_norm), tuples(True), training_step=step)).status == "pass"
    assert judge(Target(Reader(batch_norm), tuples(False), training_step=step)).status == "fail"


def test_a_model_without_any_mask_is_not_judged() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 32)
            self.head = nn.Linear(32, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(ids).mean(1))

    data = batches(lambda b: (b["input_ids"], b["labels"]))
    assert judge(Target(Average(), data, nn.CrossEntropyLoss())).status == "pass"


def test_a_decoder_that_classifies_must_know_its_padding() -> None:
    data = batches()
    assert judge(Target(llama("LlamaForSequenceClassification"), data)).status == "pass"
    result = judge(Target(model := llama("LlamaForSequenceClassification", pad_token_id=None), data))
    assert result.status == "fail"
    assert result.findings[0].where == "config.pad_token_id"
    assert model.config.pad_token_id is None


def test_a_vector_that_never_learns() -> None:
    class Average(nn.Module):
        def __init__(self, padding: int) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 32, padding_idx=padding)
            self.head = nn.Linear(32, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(ids).mean(1))

    data = batches(lambda b: (b["input_ids"], b["labels"]), pad=1)
    assert judge(Target(Average(1), data, nn.CrossEntropyLoss())).status == "pass"
    result = judge(Target(Average(8), data, nn.CrossEntropyLoss()))
    assert result.status == "warn"
    assert "never learns" in result.findings[0].message


def test_a_fixed_length_is_judged_by_what_it_costs() -> None:
    assert judge(Target(bert(), batches(width=24))).status == "pass"
    target = Target(bert(), batches(width=64))
    assert judge(target).status == "warn"
    for option in ({"min-saved": 60}, {"max-padding": 0.9}):
        assert judge(target, checks={"padding": option}).status == "pass"


def test_rows_without_padding_and_no_rows_at_all() -> None:
    ids = torch.randint(1, 50, (8, 9))
    result = judge(Target(bert(), [{"input_ids": ids, "labels": torch.arange(8) % 2}]))
    assert result.status == "pass"
    assert "no padding in 8 rows" in result.findings[0].message
    assert judge(Target(nn.Linear(3, 2), [(torch.randn(4, 3), torch.zeros(4).long())])).status == "skip"
