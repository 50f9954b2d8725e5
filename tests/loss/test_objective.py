"""How far a model has come, judged by its loss calls."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from debugkit.loss.objective import Score, Watch

Y = torch.tensor([0, 1, 2, 0])


def score(value: float, constant: float = 1.0, errors: int = 0) -> Score:
    return Score("classes", value, value, errors, 16, constant, 8)


def watched(loss_of, logits: torch.Tensor | None = None) -> tuple[Watch, torch.Tensor]:
    logits = torch.randn(4, 3, requires_grad=True) if logits is None else logits
    watch = Watch()
    with watch:
        loss = loss_of(logits)
    watch.score(loss)
    with watch:
        loss.backward()
    return watch, loss


def test_progress_runs_from_the_constant_prediction_to_a_perfect_one() -> None:
    first = score(1.5)
    assert first.by_value(first) == -1
    assert score(1.0).by_value(first) == 0
    assert score(0.25).by_value(first) == 0.75
    assert score(9.0, errors=4).by_errors() == 0.5


def test_a_loss_of_unknown_scale_is_measured_from_its_start() -> None:
    first, later = (Score("unknown", v, v, 0, 0, float("nan"), 0) for v in (2.0, 0.5))
    assert later.gained(first) == later.fallen(first) == 0.75


def test_one_class_says_nothing_by_value() -> None:
    first = score(1.0, constant=0.0)
    assert score(0.5, constant=0.0).by_value(first) == -math.inf
    assert score(0.5, constant=0.0).gained(first) == 0.5


def test_the_main_call_is_the_one_that_is_scored() -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(logits[:1], logits[:1].detach() + 1) + F.cross_entropy(logits, Y)

    watch, _ = watched(loss)
    assert watch.main_call is not None
    name, location = watch.main_call
    assert name == "cross_entropy"
    assert location is not None
    assert "test_objective.py" in location


def test_a_log_likelihood_without_its_minus_is_told() -> None:
    watch, loss = watched(lambda logits: logits.log_softmax(-1).gather(1, Y[:, None]).mean())
    assert watch.lowers_likelihood(float(loss.detach()), Y)


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda logits: -logits.log_softmax(-1).gather(1, Y[:, None]).mean(),
        lambda logits: -torch.log1p(-logits.log_softmax(-1).gather(1, Y[:, None]).exp()).mean(),
        lambda logits: (logits.log_softmax(-1) * logits.softmax(-1)).sum(),
        lambda logits: logits.log_softmax(-1).gather(1, (Y[:, None] + 1) % 3).mean(),
        lambda logits: F.cross_entropy(logits, Y),
    ],
    ids=["likelihood", "unlikelihood", "entropy", "other actions", "cross-entropy"],
)
def test_other_uses_of_log_probabilities_are_left_alone(loss_of) -> None:
    watch, loss = watched(loss_of)
    assert not watch.lowers_likelihood(float(loss.detach()), Y)


def test_dropout_is_off() -> None:
    with Watch():
        assert F.dropout(torch.ones(8), 0.5).sum() == 8


def test_a_backward_with_arguments_of_its_own_is_left_alone() -> None:
    x = torch.ones(2, requires_grad=True)
    y = torch.ones(2, requires_grad=True)
    with Watch():
        (x * y).backward(torch.tensor([1.0, 3.0]))
        (x * y).sum().backward(inputs=[y])
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.tolist() == [1.0, 3.0]
    assert y.grad.tolist() == [2.0, 4.0]
