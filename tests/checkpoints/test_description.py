from pathlib import Path

import pytest
import torch

from debugkit.checkpoints.checkpoint import open_checkpoint
from debugkit.weights.matrix import Matrix


def described(
    state: dict[str, torch.Tensor], tmp_path: Path, config: str = "{}"
) -> tuple[dict[str, Matrix], dict[str, str]]:
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(config)
    found = open_checkpoint(tmp_path)
    return {one.name: one for one in found.matrices}, {one.parameter: one.reason for one in found.skipped}


def labels(matrix: Matrix) -> list[str]:
    return [label for label, _ in matrix.parts]


def test_modules_of_torch_are_told_by_their_shapes(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {
            "lstm": torch.nn.LSTM(32, 64),
            "gru": torch.nn.GRU(32, 64, bidirectional=True),
            "rnn": torch.nn.RNN(32, 64),
            "attention": torch.nn.MultiheadAttention(64, 2),
            "conv": torch.nn.Conv2d(32, 64, 3),
            "conv1": torch.nn.Conv1d(32, 64, 3),
            "depthwise": torch.nn.Conv2d(32, 32, 3, groups=32),
            "embedding": torch.nn.Embedding(100, 64),
            "norm": torch.nn.LayerNorm(64),
            "small": torch.nn.Linear(64, 2),
        }
    )
    found, skipped = described(model.state_dict(), tmp_path)
    assert labels(found["lstm.weight_ih_l0"]) == ["input gate", "forget gate", "cell gate", "output gate"]
    assert labels(found["gru.weight_hh_l0_reverse"]) == ["reset gate", "update gate", "new gate"]
    assert labels(found["rnn.weight_ih_l0"]) == []
    assert labels(found["attention.in_proj_weight"]) == ["query", "key", "value"]
    assert found["conv.weight"].kind == found["conv1.weight"].kind == "conv"
    assert found["embedding.weight"].unjudged == "embedding table"
    assert skipped == {"depthwise.weight": "depthwise", "small.weight": "a side under 32"}


def test_the_transposed_layout_is_told_by_the_biases(tmp_path: Path) -> None:
    state = {}
    for block in range(2):
        for name, shape in {"attn": (64, 192), "proj": (64, 64), "up": (64, 256), "down": (256, 64)}.items():
            state[f"h.{block}.{name}.weight"] = torch.randn(shape)
            state[f"h.{block}.{name}.bias"] = torch.randn(shape[1])
    found, _ = described(state, tmp_path)
    assert {one.outputs for one in found.values()} == {1}
    assert found["h.0.attn.weight"].axis == 1
    assert len(found["h.0.attn.weight"].parts) == 3


def test_stacked_experts_and_grouped_queries(tmp_path: Path) -> None:
    state = {
        "mlp.experts.down_proj": torch.randn(4, 64, 32),
        "attn.qkv_proj.weight": torch.randn(64 + 2 * 32, 64),
        "mlp.gate_up_proj.weight": torch.randn(192, 64),
    }
    config = (
        '{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}'
    )
    found, _ = described(state, tmp_path, config)
    assert found["mlp.experts.down_proj"].kind == "experts"
    assert found["attn.qkv_proj.weight"].parts == (("query", 64), ("key", 32), ("value", 32))
    assert labels(found["mlp.gate_up_proj.weight"]) == ["gate", "up"]


def test_tied_tensors_count_once_and_zeros_are_not_tied(tmp_path: Path) -> None:
    table = torch.randn(100, 64)
    state = {
        "embed.weight": table,
        "head.weight": table,
        "copy.weight": table.clone(),
        "zero_a.weight": torch.zeros(64, 64),
        "zero_b.weight": torch.zeros(64, 64),
    }
    found, skipped = described(state, tmp_path)
    assert skipped == {"head.weight": "tied to `embed.weight`", "copy.weight": "tied to `embed.weight`"}
    assert {"zero_a.weight", "zero_b.weight"} <= set(found)


def test_packed_weights_and_whole_numbers_are_left_out(tmp_path: Path) -> None:
    state = {
        "a.qweight": torch.zeros(64, 64, dtype=torch.int32),
        "a.scales": torch.randn(64, 64),
        "b.weight": torch.zeros(64, 64, dtype=torch.int8),
        "position_ids": torch.arange(64)[None],
    }
    found, skipped = described(state, tmp_path)
    assert not found
    assert skipped == {
        "a.qweight": "quantised or packed (int32)",
        "a.scales": "beside a quantised weight",
        "b.weight": "quantised or packed (int8)",
        "position_ids": "whole numbers",
    }


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama"])
def test_a_transformer_is_described_as_its_model_is(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from debugkit.weights.model_matrices import model_matrices

    small = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
    config = {
        "bert": lambda: transformers.BertConfig(**small, vocab_size=99),
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=64, n_layer=2, n_head=2, vocab_size=99, bos_token_id=0, eos_token_id=0
        ),
        "t5": lambda: transformers.T5Config(
            d_model=64, d_kv=32, num_heads=2, num_layers=2, d_ff=96, vocab_size=99
        ),
        "llama": lambda: transformers.LlamaConfig(**small, num_key_value_heads=1, vocab_size=99),
    }[name]()
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(config.to_json_string())
    found = {one.name: one for one in open_checkpoint(tmp_path).matrices if not one.unjudged}
    wanted, _ = model_matrices(model)
    assert list(found) == [one.name for one in wanted]
    for one in wanted:
        assert (found[one.name].parts, found[one.name].axis, found[one.name].outputs) == (
            one.parts,
            one.axis if one.parts else found[one.name].axis,
            one.outputs,
        )


def test_a_width_that_equals_the_longest_text_makes_no_tables(tmp_path: Path) -> None:
    names = [
        f"layers.{block}.{name}.weight" for block in range(3) for name in ("q_proj", "shared_experts.up")
    ]
    state = {name: torch.randn(64, 64) for name in names} | {"tok.weight": torch.randn(99, 64)}
    config = '{"vocab_size": 99, "max_position_embeddings": 64, "hidden_size": 64}'
    found, _ = described(state, tmp_path, config)
    assert [name for name, one in found.items() if one.kind == "embedding"] == ["tok.weight"]


def test_zeros_beside_the_weight_of_their_layer_are_a_buffer(tmp_path: Path) -> None:
    state = {
        "a.weight": torch.randn(64, 64),
        "a.weight_integer": torch.zeros(64, 64),
        "b.weight": torch.zeros(64, 64),
    }
    found, skipped = described(state, tmp_path)
    assert list(found) == ["a.weight", "b.weight"]
    assert skipped == {"a.weight_integer": "all zero beside `a.weight`"}
