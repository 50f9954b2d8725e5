"""The callback of ``transformers.Trainer``: it judges, watches, reports, stops, and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from debugkit import ChecklistFailed
from debugkit.integrations.trainer_callback import DebugkitCallback


class Forgetful(Trainer):  # type: ignore[misc]
    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        loss = super().training_step(model, inputs, *rest)
        model.zero_grad()
        return loss


class Softmaxed(Trainer):  # type: ignore[misc]
    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        probabilities = model(input_ids=inputs["input_ids"]).logits.softmax(-1)
        return torch.nn.functional.cross_entropy(probabilities, inputs["labels"])


def train(
    folder: Path, kind: type[Trainer], *callbacks: DebugkitCallback, **changes: Any
) -> tuple[torch.Tensor, Trainer]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForSequenceClassification(config)
    ids = torch.randint(4, 32, (64, 8))
    rows = [{"input_ids": row, "labels": (row[0] > 18).long()} for row in ids]
    settings: dict[str, Any] = {"max_steps": 16, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **{**settings, **changes}
    )
    trainer = kind(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), trainer


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 2, "bf16": True, "eval_strategy": "no", "warmup_steps": 4}],
    ids=["plain", "accumulated"],
)
def test_a_healthy_training_is_quiet_and_the_same(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = DebugkitCallback(stop_on_fail=True, config={})
    weights, trainer = train(tmp_path, Trainer, callback, **changes)
    alone, before = train(tmp_path, Trainer, **changes)
    assert torch.equal(weights, alone)
    assert trainer.state.global_step == before.state.global_step == 16
    losses = [[entry.get("train_loss") for entry in one.state.log_history] for one in (trainer, before)]
    assert losses[0] == losses[1]
    assert callback.report is not None
    assert callback.report.status == "pass"
    assert {callback.report[check].status for check in ("loss-connected", "zero-grad")} == {"pass"}
    assert callback.watch is not None
    assert callback.watch.record.steps == 16
    error = capsys.readouterr().err
    assert error.count("loss-connected ") == error.count("zero-grad ") == 1
    assert error.count("BertForSequenceClassification · ") == 2


def test_the_gate_stops_before_the_first_step(tmp_path: Path) -> None:
    callback = DebugkitCallback(config={"select": ["loss", "loop"]})
    with pytest.raises(ChecklistFailed, match="logits-vs-probs"):
        train(tmp_path, Softmaxed, callback)
    assert callback.watch is None
    assert callback.report is not None
    assert callback.report["logits-vs-probs"].status == "fail"


def test_a_gate_that_only_reports_lets_training_go_on(tmp_path: Path) -> None:
    callback = DebugkitCallback(gate="report", config={"select": ["logits-vs-probs", "zero-grad"]})
    _, trainer = train(tmp_path, Softmaxed, callback)
    assert trainer.state.global_step == 16
    assert callback.report is not None
    statuses = {result.check: result.status for result in callback.report.results}
    assert statuses == {"logits-vs-probs": "fail", "zero-grad": "pass"}


def test_a_failure_of_the_loop_ends_the_training(tmp_path: Path) -> None:
    callback = DebugkitCallback(stop_on_fail=True, config={"select": ["loop"]})
    _, trainer = train(tmp_path, Forgetful, callback)
    assert trainer.state.global_step == 3
    assert callback.report is not None
    assert callback.report["zero-grad"].status == "fail"
    assert torch.nn.Module.__call__ is vars(torch.nn.Module)["_wrapped_call_impl"]


def test_the_callback_finds_the_trainer_it_belongs_to(tmp_path: Path) -> None:
    class Nested(DebugkitCallback):
        """Trains another trainer before its own training begins."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            train(tmp_path, Trainer, inner)
            super().on_train_begin(args, state, control, **kwargs)

    inner = DebugkitCallback(config={"select": ["logits-vs-probs"]})
    outer = Nested(config={"select": ["logits-vs-probs"]})
    with pytest.raises(ChecklistFailed):
        train(tmp_path, Softmaxed, outer)
    assert inner.report is not None
    assert inner.report.status == "pass"


PROGRAM = """
import sys
from pathlib import Path
from test_trainer_callback import DebugkitCallback, Trainer, train

class Crashing(Trainer):
    def training_step(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise RuntimeError("the disk is full")
        return super().training_step(*args, **kwargs)

train(Path(sys.argv[1]), Crashing, DebugkitCallback(config={"select": ["loop"]}))
"""


def test_a_program_that_ends_with_an_error_still_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the loop ended after 5 optimizer steps with RuntimeError: the disk is full" in " ".join(
        done.stderr.split()
    )
    assert done.stderr.count("13 checks") == 1
