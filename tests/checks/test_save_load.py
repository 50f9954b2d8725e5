"""save-load beyond its own examples."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.state.memory import Memory
from debugkit.testing import blobs, mlp

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}


def judge(target: Target | nn.Module) -> Result:
    target = target if isinstance(target, Target) else Target(target)
    return debugkit.run(target, select="save-load")["save-load"]


def classify(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


class Reading(nn.Module):
    """A classifier over a sequence cut from the features, by a module that takes ``[batch, 4, 2]``."""

    def __init__(self, reader: nn.Module, width: int) -> None:
        super().__init__()
        self.reader, self.head = reader, nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.reader(x.view(-1, 4, 2))[0][:, -1])  # type: ignore[no-any-return]


class Cached(nn.Module):
    """Keeps a table of positions that it makes on the first call, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table, self.calls, self.log = mlp(), None, 0, []  # type: ignore[var-annotated]
        self.register_buffer("grid", torch.zeros(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(8.0)
        self.calls += 1
        self.log.append(float(x.detach().mean()))
        return self.body(x + 0.01 * self.table + self.grid)  # type: ignore[no-any-return]


def compiled() -> nn.Module:
    return torch.compile(mlp(), backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "make",
    [
        lambda: classify(nn.Sequential(nn.BatchNorm1d(8), mlp())),
        lambda: classify(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), mlp())),
        lambda: classify(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), mlp())),
        lambda: classify(Reading(nn.LSTM(2, 6, batch_first=True), 6)),
        lambda: classify(Cached()),
        lambda: classify(compiled()),
        lambda: Target(mlp()),
        lambda: Target(mlp().bfloat16()),
        lambda: Target(nn.DataParallel(mlp())),
        lambda: Target(nn.LazyLinear(3)),
        lambda: Target(mlp().requires_grad_(False)),
        lambda: Target(nn.Linear(3, 3, device="meta")),
        lambda: Target(nn.Identity()),
    ],
)
def test_healthy_and_odd_models_are_quiet(make: Any) -> None:
    result = judge(make())
    assert result.status in ("pass", "skip"), result


def test_the_model_is_left_as_it_was() -> None:
    model = Cached()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert judge(classify(model)).status == "pass"
    assert (model.table, model.calls, model.log) == (None, 0, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_in_an_object_of_ones_own_is_found() -> None:
    class Tracker:
        def __init__(self) -> None:
            self.scale = torch.ones(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tracker = mlp(), Tracker()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.tracker.scale.mul_(0.9).add_(0.1 * x.detach().std())
            return self.body(x / self.tracker.scale)  # type: ignore[no-any-return]

    result = judge(classify(Net()))
    assert [(f.level, f.where) for f in result.findings if f.level != "note"] == [("fail", "tracker")]


def test_only_the_attribute_that_matters_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.seen, self.offset = mlp(), 0, torch.zeros(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += len(x)
            if self.training:
                self.offset = self.offset + 0.1 * x.detach().mean(0)
            return self.body(x - self.offset)  # type: ignore[no-any-return]

    failed = [f for f in judge(classify(Net())).findings if f.level == "fail"]
    assert [f.where for f in failed] == ["offset"]
    assert "seen" not in failed[0].message


def test_versions_are_saved_too() -> None:
    class Versioned(nn.Linear):
        _version = 7

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
            assert metadata["version"] == 7
            super()._load_from_state_dict(state, prefix, metadata, *args)  # type: ignore[no-untyped-call]

    assert judge(Versioned(3, 3)).status == "pass"


def test_a_hook_that_drops_a_key_is_found() -> None:
    model = mlp()

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, meta: Any) -> None:
        del state[f"{prefix}bias"]

    model[2].register_state_dict_post_hook(drop)  # type: ignore[attr-defined]
    result = judge(model)
    assert result.status == "fail"
    assert "Missing key" in result.findings[0].message


def test_transformers_models_come_back() -> None:
    transformers = pytest.importorskip("transformers")
    makes = [
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2)),
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
        lambda: transformers.BertModel(transformers.BertConfig(**SIZES)).to(torch.bfloat16),
    ]
    for make in makes:
        model = make()
        result = judge(model)
        assert result.status == "pass"
        assert any("`from_pretrained` gives back" in f.message for f in result.findings), result.findings


def test_a_head_of_ones_own_is_a_note() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    model.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 2))
    result = judge(model)
    assert result.status == "pass"
    assert any("builds otherwise" in f.message for f in result.findings)


def test_tensors_shared_against_the_config_come_back_with_other_values() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)
    )
    model.lm_head.weight = model.model.embed_tokens.weight
    result = judge(model)
    assert [(f.level, f.where) for f in result.findings if f.level != "note"] == [("fail", "lm_head.weight")]


def test_memory_keeps_compares_and_puts_back() -> None:
    model = nn.Module()
    model.parts = {"a": [torch.ones(2), 3], "b": (torch.zeros(1),)}
    model.flag = False
    memory = Memory(model)
    assert memory.changed() == []
    model.parts["a"][0].add_(1)
    model.parts["c"] = 5
    model.flag, model.more = True, 1
    assert memory.changed() == ["parts", "flag", "more"]
    memory.put_back()
    assert model.parts["a"][0].tolist() == [1, 1]
    assert (list(model.parts), model.flag, hasattr(model, "more")) == (["a", "b"], False, False)


def test_adapters_save_their_own() -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert judge(model).status == "pass"
    base.model.norm.weight.requires_grad_(True)
    result = judge(model)
    assert [f.where for f in result.findings if f.level == "fail"] == ["base_model.model.model.norm.weight"]


def test_a_step_that_needs_its_whole_batch_is_no_error() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        if len(x) < 8:
            raise ValueError("too few rows")
        return F.cross_entropy(model(x), y)

    loader: DataLoader[Any] = blobs()
    assert judge(Target(mlp(), loader, training_step=step)).status == "pass"


def test_a_config_file_that_leaves_something_out_is_a_note() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=50,
        max_position_embeddings=32,
    )
    config.num_labels = 2
    assert judge(transformers.BartForSequenceClassification(config)).status == "pass"
