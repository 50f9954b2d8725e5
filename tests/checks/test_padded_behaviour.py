"""padding-invariance, pooled-token, cache-parity and attention-patterns beyond their own examples."""

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
CHECKS = ("padding-invariance", "pooled-token", "cache-parity", "attention-patterns")


def judge(target: Target) -> dict[str, Result]:
    report = debugkit.run(target, select=",".join(CHECKS), config={})
    return {check: report[check] for check in CHECKS}


def said(result: Result) -> str:
    return " ".join(finding.message for finding in result.findings)


def batches(
    side: str = "right", tokens: bool = False, shortest: int = 8, dtype: Any = None
) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, 17, (32,), generator=generator).tolist()
    rows: Any = [torch.randint(4, 50, (length,), generator=generator).tolist() for length in lengths]

    def collate(picked: list[list[int]]) -> dict[str, torch.Tensor]:
        wide = max(map(len, picked))
        fills = [[0] * (wide - len(row)) for row in picked]
        pairs = list(zip(picked, fills, strict=True))
        ids = torch.tensor([row + fill if side == "right" else fill + row for row, fill in pairs])
        mask = (ids != 0).long()
        labels = ids.masked_fill(mask == 0, -100) if tokens else torch.tensor([sum(r) % 2 for r in picked])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return DataLoader(rows, batch_size=8, collate_fn=collate)


def bert(kind: str = "BertForSequenceClassification", **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(
        transformers.BertConfig(vocab_size=50, max_position_embeddings=64, **TINY, **options)
    )


def llama(kind: str = "LlamaForCausalLM", **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**TINY, "num_key_value_heads": 2, "pad_token_id": 0, **options}
    return getattr(transformers, kind)(transformers.LlamaConfig(vocab_size=50, **sizes))


def test_an_encoder_keeps_padding_out() -> None:
    found = judge(Target(bert(), batches()))
    assert {check: result.status for check, result in found.items()} == {
        "padding-invariance": "pass",
        "pooled-token": "pass",
        "cache-parity": "skip",
        "attention-patterns": "pass",
    }
    assert "position 0" in said(found["pooled-token"])
    assert "0 on padding" in said(found["attention-patterns"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_with_relative_positions_keeps_padding_out_on_both_sides(side: str) -> None:
    found = judge(Target(llama(), batches(side, tokens=True)))
    assert [found[check].status for check in CHECKS] == ["pass", "skip", "pass", "pass"]
    assert f"on the {side}" in said(found["padding-invariance"])


def test_a_decoder_that_classifies_pools_the_last_real_token() -> None:
    found = judge(Target(llama("LlamaForSequenceClassification"), batches()))
    assert found["pooled-token"].status == found["padding-invariance"].status == "pass"


def test_a_classifier_reads_a_pad_where_its_configuration_names_another_id() -> None:
    found = judge(Target(llama("LlamaForSequenceClassification", pad_token_id=3), batches()))
    assert found["pooled-token"].status == "fail"
    assert found["padding-invariance"].status == "pass"


def test_an_encoder_configured_as_a_decoder_sees_its_first_token_only() -> None:
    found = judge(Target(bert(is_decoder=True), batches()))["pooled-token"]
    assert found.status == "fail"
    assert "come after it" in said(found)


def test_fourier_mixing_is_a_note() -> None:
    torch.manual_seed(0)
    config = transformers.FNetConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, intermediate_size=32)
    model = transformers.FNetForSequenceClassification(config)
    found = judge(Target(model, batches()))["padding-invariance"]
    assert found.status == "pass"
    assert "by design" in said(found)


def test_bfloat16_is_no_difference() -> None:
    found = judge(Target(llama().to(torch.bfloat16), batches(tokens=True)))
    assert {result.status for result in found.values()} <= {"pass", "skip"}


def test_the_attention_of_the_user_comes_back() -> None:
    model = bert(attn_implementation="sdpa")
    before = model.config.to_dict()
    judge(Target(model, batches()))
    assert model.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == before


class Words(nn.Module):
    def __init__(
        self, pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], convolves: bool = False
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.mix = nn.Conv1d(16, 16, 3, padding=1) if convolves else None
        self.out = nn.Linear(16, 2)
        self.pool = pool

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.words(input_ids)
        if self.mix is not None:
            hidden = self.mix(hidden.mT).mT
        return self.out(self.pool(hidden, input_ids != 0))


def masked_mean(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)


def test_a_mask_that_the_model_makes_itself() -> None:
    found = judge(Target(Words(masked_mean), batches(), nn.CrossEntropyLoss()))["padding-invariance"]
    assert found.status == "pass"
    assert "0 standard deviations" in said(found)


def test_a_mean_over_everything_without_any_mask_is_a_warning() -> None:
    model = Words(lambda hidden, real: hidden.mean(1))
    assert judge(Target(model, batches(), nn.CrossEntropyLoss()))["padding-invariance"].status == "warn"


def test_convolutions_reach_over_the_edge_by_design() -> None:
    model = Words(lambda hidden, real: hidden.amax(1), convolves=True)
    assert judge(Target(model, batches(), nn.CrossEntropyLoss()))["padding-invariance"].status == "pass"


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)
        self.out = nn.Linear(64, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.pad(self.words(input_ids).flatten(1), (0, 64))[:, :64])


def test_sequences_without_padding_are_not_judged() -> None:
    rows: Any = [(torch.randint(1, 50, (16,)), number % 2) for number in range(32)]
    found = judge(Target(Flat(), DataLoader(rows, batch_size=8), nn.CrossEntropyLoss()))
    assert found["padding-invariance"].status == "skip"
    assert found["cache-parity"].status == "skip"


def test_images_are_not_judged() -> None:
    rows: Any = [(torch.randn(3, 8, 8), number % 2) for number in range(16)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    found = judge(Target(model, DataLoader(rows, batch_size=8), nn.CrossEntropyLoss()))
    assert {result.status for result in found.values()} == {"skip"}


def test_a_model_without_a_loader_is_not_judged() -> None:
    assert {result.status for result in judge(Target(llama())).values()} == {"skip"}


class Ignores(nn.Module):
    """Takes a mask and does not use it, on rows of one length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.words(input_ids)
        mixed, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        return self.out(masked_mean(hidden + mixed, attention_mask))


def test_padding_is_put_in_where_the_data_has_none() -> None:
    found = judge(Target(Ignores(), batches(shortest=16), nn.CrossEntropyLoss()))["padding-invariance"]
    assert found.status == "warn"
    assert "`attention` (`MultiheadAttention`)" in said(found)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
def test_a_lora_decoder_generates_as_it_trains() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    found = judge(Target(model, batches(tokens=True)))
    assert found["cache-parity"].status == "pass"
    assert "`generate`" in said(found["cache-parity"])


class Stubborn(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Generates without the logits processors that it is given."""

    def generate(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        return super().generate(*args, **kwargs)


def test_generation_that_can_not_be_told_what_to_choose_is_not_compared() -> None:
    model = llama()
    model.__class__ = Stubborn
    found = judge(Target(model, batches(tokens=True)))["cache-parity"]
    assert found.status == "skip"
    assert "chooses other tokens" in (found.reason or "")
