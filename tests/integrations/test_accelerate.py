"""What ``accelerator.prepare`` returns can be gated and watched as it is, and trains the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import ChecklistFailed, Target

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState


@contextmanager
def fresh_accelerator(**options: Any) -> Iterator[Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        yield Accelerator(cpu=True, **options)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def train(*, looked_at: bool, mistake: str = "", **options: Any) -> tuple[Any, list[float], Any]:
    """The recipe: a gate after ``prepare``, a watch around the loop."""
    torch.manual_seed(0)
    x = torch.randn(192, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=36)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True)
    with fresh_accelerator(**options) as accelerator:
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

        def fit() -> list[float]:
            losses = []
            for inputs, labels in (batch for _ in range(6) for batch in loader):
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(inputs), labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    if mistake != "not cleared":
                        optimizer.zero_grad()
                losses.append(loss.item())
            return losses

        if not looked_at:
            return model, fit(), None
        target = Target(
            model,
            loader,
            loss_fn=F.cross_entropy,
            optimizer=optimizer,
            scheduler=schedule,
            accumulation_steps=accelerator.gradient_accumulation_steps,
            precision="bf16" if accelerator.mixed_precision == "bf16" else None,
        )
        if not mistake:
            debugkit.gate(target, config={"max-cost": "backward"})
        with debugkit.watch(model, optimizer=optimizer, config={}, preflight=not mistake) as watch:
            losses = fit()
    return model, losses, watch


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 3, "mixed_precision": "bf16"}],
    ids=["plain", "accumulated", "bf16"],
)
def test_a_gated_and_watched_training_is_the_same(options: dict[str, Any]) -> None:
    model, losses, watch = train(looked_at=True, **options)
    alone, before, _ = train(looked_at=False, **options)
    assert losses == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    loud = {
        result.check: result.status
        for result in watch.report.results
        if result.status not in ("pass", "skip")
    }
    assert not loud
    assert watch.record.steps == 72 // options.get("gradient_accumulation_steps", 1)
    assert len(watch.record.optimizers) == 1


def test_gradients_that_are_not_cleared_are_seen() -> None:
    _, _, watch = train(looked_at=True, mistake="not cleared", gradient_accumulation_steps=2)
    assert {r.check for r in watch.report.results if r.status == "fail"} == {"zero-grad"}


def test_the_gate_judges_prepared_objects() -> None:
    with fresh_accelerator() as accelerator:
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(-1))
        data = TensorDataset(torch.randn(64, 6), torch.randint(2, (64,)))
        loader = DataLoader(data, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        target = Target(model, loader, loss_fn=F.cross_entropy, optimizer=optimizer)
        with pytest.raises(ChecklistFailed, match="logits-vs-probs"):
            debugkit.gate(target, config={"max-cost": "backward"})
