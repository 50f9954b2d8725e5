"""compile-parity beyond its own examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import blobs, mlp

WRONG = "wrong_by_a_little"


def judge(target: Target, backend: str | None) -> Result:
    chosen = {"evidence": {"other-backend": {"name": backend}}} if backend else {}
    return debugkit.run(target, select="compile-parity", config=chosen)["compile-parity"]


def classify(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pytest.fixture
def wrong_backend() -> Iterator[str]:
    """A backend whose every result is 1 % too large."""
    from torch._dynamo.backends import registry

    def compiled(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return lambda *args: tuple(
            value * 1.01 if value.is_floating_point() else value for value in graph.forward(*args)
        )

    registry.register_backend(compiled, name=WRONG)
    yield WRONG
    registry._COMPILER_FNS.pop(WRONG, None)


def test_nothing_is_compiled_unasked() -> None:
    calls: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(inputs)
        return graph.forward

    for model in (mlp(), torch.compile(mlp(), backend=backend)):
        result = judge(classify(model), None)  # type: ignore[arg-type]
        assert result.status == "skip"
        assert "--set other-backend.name=inductor" in (result.reason or "")
    assert not calls


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_same_results_pass(backend: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), mlp())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = judge(classify(model), backend)
    assert result.status == "pass", result
    assert "the same 1 outputs" in result.findings[0].message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_backend_that_gives_wrong_results_fails(wrong_backend: str) -> None:
    result = judge(classify(mlp()), wrong_backend)
    assert [f.level for f in result.findings] == ["fail"]
    assert result.findings[0].measured["error"] == pytest.approx(0.01, rel=0.5)


def test_a_compiled_model_is_compared_with_its_eager_self(wrong_backend: str) -> None:
    model: Any = torch.compile(mlp(), backend=wrong_backend)
    assert judge(classify(model), wrong_backend).status == "fail"


def test_an_unknown_backend_is_a_skip() -> None:
    result = judge(classify(mlp()), "inducktor")
    assert result.status == "skip"
    assert "inductor" in (result.reason or "")


def test_a_limit_on_cost_keeps_it_out() -> None:
    chosen = {"evidence": {"other-backend": {"name": "eager"}}, "max-cost": "backward"}
    report = debugkit.run(classify(mlp()), select="compile-parity", config=chosen)
    assert not report.results


def test_a_model_that_raises_only_when_compiled_fails() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                return self.body(x.view(-1, 3))  # type: ignore[no-any-return]
            return self.body(x)  # type: ignore[no-any-return]

    result = judge(classify(Odd()), "eager")
    assert [f.level for f in result.findings] == ["fail"]
    assert "raises with `eager`" in result.findings[0].message


def test_a_model_that_differs_from_itself_is_not_judged() -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = mlp(), [0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls[0] += 1
            return self.body(x) + torch.randn(2, generator=self.generator)  # type: ignore[no-any-return]

    model = Drifting()
    model.generator = torch.Generator()
    assert judge(classify(model), "eager").status == "pass"


def test_attention_backends_of_transformers_agree() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=40,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(3, 40, (16, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    target = Target(model, DataLoader(rows, batch_size=8))  # type: ignore[arg-type]
    result = judge(target, "eager-attention")
    assert result.status == "pass", result
    assert model.config._attn_implementation == "sdpa"
    assert judge(classify(mlp()), "eager-attention").status == "skip"
