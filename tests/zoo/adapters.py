"""Adapters that do not train, or do not act."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from debugkit import Target

from . import pair

LORA = "https://arxiv.org/abs/2106.09685"
LOADING = "https://huggingface.co/docs/peft/package_reference/peft_model"
MERGING = "https://huggingface.co/docs/peft/developer_guides/lora"
HEADS = "https://huggingface.co/docs/peft/developer_guides/troubleshooting"


def texts(vocabulary: int = 40) -> DataLoader[Any]:
    """Token ids ``[8]`` whose third token tells the label."""
    labels = torch.arange(64) % 2
    ids = torch.randint(5, vocabulary, (64, 8), generator=torch.Generator().manual_seed(0))
    ids[:, 2] = 3 + labels
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(ids, labels, strict=True)
    ]
    return DataLoader(rows, batch_size=16, shuffle=True)  # type: ignore[arg-type]


def bert(width: int = 16) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        vocab_size=40,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


def pretrained_bert() -> Any:
    """A BERT whose body has the strong directions that training leaves."""
    model = bert(32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.bert.parameters():
            if weight.ndim == 2:
                left, right = (torch.randn(n, 2, generator=generator) for n in weight.shape)
                weight += 0.05 * left @ right.T
    return model


def adapted(base: Any, **options: Any) -> Any:
    import peft

    with warnings.catch_warnings(action="ignore"):
        settings = {
            "r": 4,
            "target_modules": ["query", "value"],
            "modules_to_save": ["classifier"],
            **options,
        }
        return peft.get_peft_model(base, peft.LoraConfig(**settings)).train()


@pair("adapters", source=LOADING, where="query")
def adapter_loaded_for_inference(broken: bool) -> Target:
    model = adapted(bert())
    if broken:
        model.requires_grad_(False)
    return Target(model, texts())


@pair("adapters", source=MERGING, where="query")
def merged_before_training(broken: bool) -> Target:
    model = adapted(bert())
    if broken:
        model.merge_adapter()
    return Target(model, texts())


@pair("adapters", level="warn", source=LORA, where="query")
def unfrozen_after_wrapping(broken: bool) -> Target:
    model = adapted(bert())
    if broken:
        model.requires_grad_(True)
    return Target(model, texts())


@pair("adapters", source=HEADS, where="classifier")
def new_head_frozen_with_the_base(broken: bool) -> Target:
    options = {"modules_to_save": None} if broken else {}
    return Target(adapted(pretrained_bert(), **options), texts())


@pair("adapters", source=LORA, where="query")
def scaling_of_zero(broken: bool) -> Target:
    return Target(adapted(bert(), lora_alpha=0 if broken else 8), texts())


@pair("adapters", level="warn", source=LORA, where="query")
def rank_above_the_width(broken: bool) -> Target:
    return Target(adapted(bert(), r=64 if broken else 4), texts())


class LowRank(nn.Linear):
    """A frozen linear layer with factors ``[rank, in]`` and ``[out, rank]`` of its own."""

    def __init__(self, ins: int, outs: int, rank: int = 4) -> None:
        super().__init__(ins, outs)
        self.lora_a = nn.Parameter(torch.randn(rank, ins) / ins**0.5)
        self.lora_b = nn.Parameter(torch.zeros(outs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


def images() -> DataLoader[Any]:
    labels = torch.arange(64) % 3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    return DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=16, shuffle=True)


@pair("adapters", level="warn", source="https://github.com/microsoft/LoRA", where="1")
def everything_frozen_after_the_adapters_were_added(broken: bool) -> Target:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), LowRank(36, 24), nn.ReLU(), LowRank(24, 24), nn.ReLU(), nn.Linear(24, 3)
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("5.") or (not broken and "lora" in name))
    return Target(model, images(), nn.CrossEntropyLoss())


@pair("adapters", source=LORA, where="1")
def both_factors_start_at_zero(broken: bool) -> Target:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), LowRank(36, 24), nn.ReLU(), LowRank(24, 24), nn.ReLU(), nn.Linear(24, 3)
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("5.") or "lora" in name)
        if broken and name.endswith("lora_a"):
            nn.init.zeros_(parameter)
    return Target(model, images(), nn.CrossEntropyLoss())
