"""The callback of ``transformers.Trainer``: it watches, reports, stops, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from debugkit.integrations.trainer_callback import DebugkitCallback


class Forgetful(Trainer):  # type: ignore[misc]
    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        loss = super().training_step(model, inputs, *rest)
        model.zero_grad()
        return loss


def train(folder: Path, kind: type[Trainer], *callbacks: DebugkitCallback) -> tuple[torch.Tensor, int]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForSequenceClassification(config)
    rows = [{"input_ids": torch.randint(4, 32, (8,)), "labels": torch.tensor(i % 2)} for i in range(64)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=16,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = kind(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), trainer.state.global_step


def test_a_healthy_training_is_quiet_and_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = DebugkitCallback(stop_on_fail=True, config={})
    with_it, without = train(tmp_path, Trainer, callback), train(tmp_path, Trainer)
    assert torch.equal(with_it[0], without[0])
    assert with_it[1] == without[1] == 16
    assert callback.report is not None
    assert callback.report.status == "pass"
    assert callback.watch is not None
    assert callback.watch.record.steps == 16
    assert "BertForSequenceClassification · " in capsys.readouterr().err


def test_a_failure_ends_the_training(tmp_path: Path) -> None:
    callback = DebugkitCallback(stop_on_fail=True, config={})
    _, steps = train(tmp_path, Forgetful, callback)
    assert steps == 3
    assert callback.report is not None
    assert callback.report["zero-grad"].status == "fail"
    assert torch.nn.Module.__call__ is vars(torch.nn.Module)["_wrapped_call_impl"]
