"""adapters beyond its own examples."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.probes.adapters import Adapters
from debugkit.report import Result
from debugkit.testing import blobs, mlp

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def judge(target: Target | nn.Module) -> Result:
    target = target if isinstance(target, Target) else Target(target)
    return debugkit.run(target, select="adapters")["adapters"]


def graver(result: Result) -> list[tuple[str, str | None]]:
    return [(f.level, f.where) for f in result.findings if f.level != "note"]


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=40,
    )
    return transformers.LlamaForCausalLM(config)


def wrap(base: Any, config: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return peft.get_peft_model(base, config).train()


def lora(base: Any = None, **options: Any) -> Any:
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], **options}
    return wrap(base or llama(), peft.LoraConfig(**settings))


def writing(model: nn.Module) -> Target:
    ids = torch.randint(3, 40, (16, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    return Target(model, DataLoader(rows, batch_size=8))  # type: ignore[arg-type]


def checkpointed(reentrant: bool) -> Any:
    model = lora()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def two_adapters() -> Any:
    model = lora()
    with warnings.catch_warnings(action="ignore"):
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.set_adapter("second")
    return model


@pytest.mark.parametrize(
    "make",
    [
        lora,
        lambda: lora(use_dora=True),
        lambda: lora(init_lora_weights="pissa"),
        lambda: lora(bias="lora_only"),
        lambda: lora(target_modules="all-linear", modules_to_save=["lm_head"]),
        lambda: lora(target_modules=["embed_tokens", "q_proj"]),
        lambda: lora(trainable_token_indices=[38, 39]),
        lambda: lora(llama().bfloat16()),
        lambda: checkpointed(reentrant=True),
        lambda: checkpointed(reentrant=False),
        two_adapters,
        lambda: wrap(llama(), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])),
        lambda: wrap(llama(), peft.LoHaConfig(r=2, target_modules=["q_proj"])),
        lambda: wrap(llama(), peft.LoKrConfig(r=2, target_modules=["q_proj"])),
        lambda: wrap(llama(), peft.VeraConfig(r=2, target_modules=["q_proj"])),
        lambda: wrap(llama(), peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"])),
        lambda: wrap(llama(), peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10)),
    ],
)
def test_healthy_adapters_pass(make: Any) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        result = judge(writing(make()))
    assert result.status == "pass", (result.reason, result.findings)


def test_a_disabled_adapter_is_found() -> None:
    model = lora()
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    result = judge(writing(model))
    assert graver(result) == [("fail", "base_model.model.model.layers.0.self_attn.q_proj")]
    assert "4 adapted layers" in result.findings[0].message


def test_one_layer_merged_by_itself_is_found() -> None:
    model = lora()
    model.base_model.model.model.layers[1].self_attn.v_proj.merge()
    assert graver(judge(writing(model))) == [("fail", "base_model.model.model.layers.1.self_attn.v_proj")]


def test_models_for_inference_are_not_told_to_train() -> None:
    assert judge(lora().requires_grad_(False)).status == "pass"


def test_part_of_the_base_unfrozen_on_purpose_is_a_note() -> None:
    model = lora()
    model.base_model.model.model.layers[1].self_attn.q_proj.base_layer.requires_grad_(True)
    result = judge(writing(model))
    assert result.status == "pass"
    assert any("1 of 4 weights" in f.message for f in result.findings)


class Bottleneck(nn.Module):
    """Down and up again, beside nothing."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(self.down(x).relu())  # type: ignore[no-any-return]


class Gates(nn.Module):
    """A wide layer beside two narrow ones that start at zero, as the gates of a recurrent cell do."""

    def __init__(self, closed: int, frozen: bool = False) -> None:
        super().__init__()
        self.value, self.enter, self.forget = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        for gate in (self.enter, self.forget)[:closed]:
            nn.init.zeros_(gate.weight)
        self.out = nn.Linear(8, 2)
        self.value.requires_grad_(not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = (self.enter(x).sigmoid() * self.forget(x).sigmoid()).repeat(1, 4)
        return self.out(self.value(x) * gates)  # type: ignore[no-any-return]


class ClosedTables(nn.Module):
    """Two tables of the same rank that both start at zero, beside a matrix that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(8, 8))
        self.rows, self.columns = (nn.Parameter(torch.zeros(2, 8)) for _ in range(2))
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((x + self.rows.sum(0)) @ self.mix + self.columns.sum(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "model",
    [
        mlp(),
        Gates(1),
        Gates(2),
        Gates(0, frozen=True),
        Gates(2, frozen=True),
        ClosedTables(),
        nn.Sequential(nn.Linear(8, 16), Bottleneck(), nn.Linear(16, 2)),
        nn.Sequential(nn.Linear(8, 16).requires_grad_(False), nn.Linear(16, 2), nn.Linear(2, 8)),
        nn.MultiheadAttention(8, 2),
        nn.LSTM(8, 8),
        nn.LazyLinear(3),
        nn.Linear(3, 3, device="meta"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_models_have_no_adapters(model: nn.Module) -> None:
    result = judge(Target(copy.deepcopy(model), blobs(), nn.CrossEntropyLoss()))
    assert result.status == "skip"
    assert result.reason == "the model has no adapters"


def test_rank_and_parts_of_a_layer() -> None:
    found = Adapters.collect(Target(lora(r=4)))
    assert [(layer.rank, layer.short, len(layer.base), len(layer.adapter)) for layer in found.layers] == [
        (4, 16, 1, 2)
    ] * 4
