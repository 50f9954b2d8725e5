"""Frozen normalisation: a backbone that drifts, and a teacher that follows the batches by design."""

from __future__ import annotations

import copy

import torch
from torch import nn

from debugkit import Target, run
from debugkit.report import Result
from debugkit.testing import blobs


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())


class WithTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(block(), nn.Linear(8, 2))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x)
        logits: torch.Tensor = self.student(x)
        return logits + 0 * wanted


def judged(model: nn.Module) -> Result:
    target = Target(model, blobs(), nn.CrossEntropyLoss())
    return run(target, select="eval-mode", config={})["eval-mode"]


def test_the_norms_of_an_averaged_teacher_are_a_note() -> None:
    result = judged(WithTeacher())
    assert result.status == "pass"
    assert any("teacher.0.1" in finding.message for finding in result.findings)


def test_a_frozen_block_beside_blocks_of_its_kind_is_no_teacher() -> None:
    model = nn.Sequential(block(), block(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    result = judged(model)
    assert result.status == "fail"
    assert result.active[0].where == "0.1"
