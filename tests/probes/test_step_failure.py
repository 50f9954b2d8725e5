"""Why a step does not run, and what would make it run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from debugkit import Target
from debugkit.probes.batches import Batches
from debugkit.probes.step_failure import StepFailure
from debugkit.sandbox import Sandbox
from debugkit.testing import mlp

X, Y = torch.randn(8, 8), torch.arange(8) % 2
CROSS_ENTROPY = torch.nn.CrossEntropyLoss()


def failure(batch: Any, loss: Any = CROSS_ENTROPY, classes: int = 2) -> StepFailure:
    target = Target(mlp(classes=classes), [batch], loss)
    with Sandbox(target) as sandbox:
        return StepFailure.collect(target, sandbox, Batches((batch,)), None)


def test_a_step_that_runs_has_no_failure() -> None:
    assert failure((X, Y)).message is None


@pytest.mark.parametrize(
    ("batch", "loss", "classes", "paths", "wanted"),
    [
        ((X.double(), Y), CROSS_ENTROPY, 2, ("[0]",), torch.float32),
        ((X.to(torch.uint8), Y), CROSS_ENTROPY, 2, ("[0]",), torch.float32),
        ((X, Y.float()), CROSS_ENTROPY, 2, ("[1]",), torch.int64),
        ((X, Y[:, None]), torch.nn.BCEWithLogitsLoss(), 1, ("[1]",), torch.float32),
        ((X.double(), X[:, :1].double()), torch.nn.MSELoss(), 1, ("[0]", "[1]"), torch.float32),
    ],
)
def test_a_type_that_would_repair_it(
    batch: Any, loss: Any, classes: int, paths: tuple[str, ...], wanted: torch.dtype
) -> None:
    found = failure(batch, loss, classes)
    assert found.message is not None
    assert found.cast is not None
    assert (set(found.cast.paths) <= set(paths), found.cast.wanted) == (True, wanted)


def test_parts_of_different_length() -> None:
    found = failure((X, Y[:-1]))
    assert (found.rows, found.lengths) == (7, {"[0]": 8, "[1]": 7})


def test_a_fault_of_another_kind_stays_unexplained() -> None:
    found = failure((torch.randn(8, 5), Y))
    assert found.message is not None
    assert (found.cast, found.rows) == (None, None)
