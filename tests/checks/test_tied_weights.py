"""tied-weights beyond its own examples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import blobs, mlp

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}


def judge(target: Target | nn.Module) -> Result:
    target = target if isinstance(target, Target) else Target(target)
    return debugkit.run(target, select="tied-weights")["tied-weights"]


def llama(**options: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2, **options))


def parallel_heads() -> Target:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.heads = nn.ModuleList([nn.Linear(8, 2)] * 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = []
            for layer, head in zip(self.layers, self.heads, strict=True):
                x = layer(x).relu()
                found.append(head(x))
            return torch.stack(found).mean(0)

    return Target(Deep(), blobs(), nn.CrossEntropyLoss())


def teacher_and_student() -> nn.Module:
    student = llama(tie_word_embeddings=True)
    return nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student)})


def shared_activations() -> nn.Module:
    relu, drop = nn.ReLU(), nn.Dropout(0.1)
    return nn.Sequential(nn.Linear(8, 8), relu, drop, nn.Linear(8, 8), relu, drop, nn.Linear(8, 2))


def two_towers_of_the_same_vectors() -> nn.Module:
    vectors = torch.randn(30, 8)
    towers = {
        name: nn.Sequential(nn.Embedding.from_pretrained(vectors.clone(), freeze=False), nn.Linear(8, 8))
        for name in "ab"
    }
    return nn.ModuleDict(towers)


def looped_block() -> nn.Module:
    return nn.ModuleDict({"block": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "head": nn.Linear(8, 2)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: llama(tie_word_embeddings=True),
        lambda: llama(tie_word_embeddings=False),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 3),
        lambda: transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SIZES, embedding_size=8)),
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, vocab_size=50)
        ),
        parallel_heads,
        teacher_and_student,
        shared_activations,
        two_towers_of_the_same_vectors,
        looped_block,
        lambda: nn.LSTM(8, 8, 2, bidirectional=True),
    ],
)
def test_healthy_models_are_quiet(make: Any) -> None:
    assert judge(make()).status in ("pass", "skip"), judge(make()).findings


def test_towers_on_the_memory_of_one_tensor_fail() -> None:
    vectors = torch.randn(30, 8)
    towers = [nn.Embedding.from_pretrained(vectors, freeze=False) for _ in range(2)]
    assert [f.where for f in judge(nn.ModuleList(towers)).findings if f.level == "fail"] == ["1.weight"]


def test_the_model_is_left_as_it_was() -> None:
    model = llama(tie_word_embeddings=True)
    model.lm_head = copy.deepcopy(model.lm_head)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    assert judge(model).status == "fail"
    after = dict(model.named_parameters(remove_duplicate=False))
    assert [*after] == [*before]
    assert all(id(after[n]) == key and torch.equal(after[n], value) for n, (key, value) in before.items())


def test_a_tie_lost_inside_a_wrapper_is_found() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = llama(tie_word_embeddings=True)
            self.backbone.set_output_embeddings(nn.Linear(16, 50, bias=False))

    result = judge(Wrapper())
    assert [f.where for f in result.findings if f.level == "fail"] == ["backbone.lm_head.weight"]


def test_a_table_that_was_resized_alone_is_found() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(50, 8), "out": nn.Linear(8, 50, bias=False)})
    model["out"].weight = model["tokens"].weight
    grown = nn.Embedding(53, 8)
    with torch.no_grad():
        grown.weight[:50] = model["tokens"].weight
    model["tokens"] = grown
    result = judge(model)
    assert result.status == "warn"
    assert "first 50 rows" in result.findings[0].message


def test_one_tensor_against_the_config() -> None:
    model = llama(tie_word_embeddings=False)
    model.lm_head.weight = model.model.embed_tokens.weight
    result = judge(model)
    assert [(f.level, f.where) for f in result.findings if f.level != "note"] == [("warn", "lm_head.weight")]


def test_a_repeated_layer_whose_calls_were_not_seen_is_a_note() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8)] * 3)})
    result = judge(model)
    assert result.status == "pass"
    assert "3 places" in result.findings[0].message


def test_a_method_that_refuses_is_no_finding() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def tie_weights(self, other: nn.Module) -> None:
            raise RuntimeError("not now")

    assert judge(Odd()).status == "pass"


def test_a_model_with_nothing_to_tie_is_a_skip() -> None:
    assert judge(nn.Linear(3, 3)).status == "skip"
