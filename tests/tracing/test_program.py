"""How a target's own step is run: models, losses and steps of every shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugkit import Report, Target
from debugkit.errors import Broken
from debugkit.registry import Registry
from debugkit.runner import Run
from debugkit.tracing.program import Program, call_model, primary_output

X, Y = torch.randn(8, 4), torch.arange(8) % 2


class Returns(nn.Module):
    """Gives its logits in some wrapping."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 2), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.layer(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.layer(left + right) * scale


class OwnLoss(nn.Module):
    """Takes its labels and returns its loss, in some wrapping."""

    def __init__(self, wrap: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 2), wrap

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.layer(x)
        return self.wrap(F.cross_entropy(logits, labels), logits) if labels is not None else logits


class Logits(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


@dataclass
class Wrapped:
    logits: torch.Tensor


class Record(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor
    labels: torch.Tensor


def model_output(loss: torch.Tensor | None, logits: torch.Tensor) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(loss=loss, logits=logits)


def run(target: Target, registry: Registry) -> Report:
    return Run(target, config={"max-cost": "backward"}, registry=registry).execute()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: {"logits": logits},
        lambda logits: (logits, logits.sum()),
        lambda logits: [logits],
        Logits,
        Wrapped,
        lambda logits: model_output(None, logits),
    ],
    ids=["tensor", "dict", "tuple", "list", "named tuple", "object", "ModelOutput"],
)
def test_outputs_of_every_shape_reach_a_loss_of_torch(wrap: Any) -> None:
    outcome = Program(Target(Returns(wrap), [(X, Y)], nn.CrossEntropyLoss())).run((X, Y))
    assert outcome.loss.shape == ()
    assert outcome.loss.requires_grad
    assert primary_output(outcome.outputs).shape == (8, 2)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        lambda outputs, y: F.cross_entropy(outputs, y),
        functools.partial(F.cross_entropy, label_smoothing=0.1),
    ],
    ids=["module", "function", "lambda", "partial"],
)
def test_losses_of_every_kind(loss_fn: Any) -> None:
    assert Program(Target(Returns(), [(X, Y)], loss_fn)).run((X, Y)).loss.requires_grad


def test_a_partial_loss_gets_the_logits() -> None:
    loss_fn = functools.partial(F.cross_entropy, label_smoothing=0.1)
    target = Target(Returns(lambda logits: {"logits": logits}), [(X, Y)], loss_fn)
    assert Program(target).run((X, Y)).loss.requires_grad


def test_a_users_own_loss_gets_the_outputs_as_they_are() -> None:
    target = Target(Returns(Logits), [(X, Y)], lambda outputs, y: F.cross_entropy(outputs.logits, y))
    assert Program(target).run((X, Y)).loss.requires_grad


@pytest.mark.parametrize(
    "batch",
    [
        (X, X, Y),
        ((X, X), Y),
        {"left": X, "right": X, "labels": Y},
        {"left": X, "right": X, "labels": Y, "row": torch.arange(8)},
        Record(X, X, Y),
    ],
    ids=["three", "nested", "mapping", "one key too many", "named tuple"],
)
def test_models_with_several_inputs(batch: Any) -> None:
    outcome = Program(Target(TwoInputs(), [batch], nn.CrossEntropyLoss())).run(batch)
    assert outcome.outputs.shape == (8, 2)


@pytest.mark.parametrize(
    "wrap",
    [
        model_output,
        lambda loss, logits: {"loss": loss, "logits": logits},
        lambda loss, logits: (loss, logits),
        lambda loss, logits: (logits, loss),
        lambda loss, logits: loss,
    ],
    ids=["ModelOutput", "dict", "tuple", "tuple the other way", "loss alone"],
)
@pytest.mark.parametrize("batch", [{"x": X, "labels": Y}, (X, Y)], ids=["mapping", "tuple"])
def test_models_that_return_their_own_loss(wrap: Any, batch: Any) -> None:
    assert Program(Target(OwnLoss(wrap), [batch])).run(batch).loss.requires_grad


def test_a_single_mapped_input_is_passed_by_position() -> None:
    assert call_model(nn.Linear(4, 2), {"features": X}).shape == (8, 2)


def test_a_custom_mapping_is_rebuilt() -> None:
    from transformers import BatchEncoding

    batch = BatchEncoding({"x": X, "labels": Y})
    assert Program(Target(OwnLoss(model_output), [batch])).run(batch).loss.requires_grad


def step(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: loss,
        lambda loss: {"loss": loss, "accuracy": 1.0},
        lambda loss: (loss, {"accuracy": 1.0}),
        lambda loss: loss.view(1),
    ],
    ids=["tensor", "dict", "tuple", "one element"],
)
def test_training_steps_of_every_shape(wrap: Any, registry: Registry) -> None:
    target = Target(Returns(), [(X, Y)] * 4, training_step=lambda model, batch: wrap(step(model, batch)))
    assert Program(target).run((X, Y)).loss.numel() == 1
    assert run(target, registry)["logits-vs-probs"].status == "pass"


def _returns_float(model: nn.Module, batch: Any) -> Any:
    return step(model, batch).item()


def _returns_nothing(model: nn.Module, batch: Any) -> None:
    step(model, batch)


def _returns_text(model: nn.Module, batch: Any) -> Any:
    return "done"


def _raises(model: nn.Module, batch: Any) -> Any:
    raise ValueError("shapes do\nnot match")


def _steps(model: nn.Module, batch: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = step(model, batch)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize(
    ("training_step", "sentence"),
    [
        (_returns_float, "`training_step` returned a Python float, which has no graph to train through"),
        (_returns_nothing, "`training_step` returned nothing; return the loss tensor"),
        (_returns_text, "`training_step` returned a `str`; return the loss as one tensor"),
        (_raises, "ValueError: shapes do not match"),
        (_steps, "`training_step` calls `SGD.step()`; pass a step that computes and returns the loss only"),
    ],
)
def test_a_broken_step_is_one_sentence(training_step: Any, sentence: str, registry: Registry) -> None:
    report = run(Target(Returns(), [(X, Y)] * 4, training_step=training_step), registry)
    result = report["logits-vs-probs"]
    assert result.status == "error"
    assert result.reason is not None
    assert sentence in result.reason
    assert "\n" not in result.reason
    assert report["label-balance"].status == "pass"
    assert report.exit_code() == 2


def test_a_step_that_runs_backward_itself_is_judged(registry: Registry) -> None:
    def with_backward(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = step(model, batch)
        loss.backward()
        return loss

    report = run(Target(Returns(), [(X, Y)] * 4, training_step=with_backward), registry)
    assert report["logits-vs-probs"].status == "pass"
    assert report["missing-gradients"].status == "pass"
    assert not report.counts["error"]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            Target(Returns(), [{"x": X}]),
            "returned no loss for the batch (keys: x); add `labels` to the batch",
        ),
        (Target(Returns(), [X], nn.CrossEntropyLoss()), "the batch has no labels for `loss_fn`"),
    ],
    ids=["no loss", "no labels"],
)
def test_what_is_missing_is_named(target: Target, sentence: str) -> None:
    with pytest.raises(Broken) as caught:
        Program(target).run(next(iter(target.train_loader or ())))
    assert sentence in str(caught.value)


def test_a_step_may_change_its_batch(registry: Registry) -> None:
    def greedy(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")
        return F.cross_entropy(model(batch["x"].mul_(0.5)), labels)

    batches = [{"x": X.clone(), "labels": Y} for _ in range(4)]
    report = run(Target(Returns(), batches, training_step=greedy), registry)
    assert not report.counts["error"]
    assert all(torch.equal(batch["x"], X) and "labels" in batch for batch in batches)


def test_the_step_runs_under_the_precision_of_training() -> None:
    seen: list[torch.dtype] = []

    def remember(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(outputs.dtype)
        return F.cross_entropy(outputs, y)

    Program(Target(Returns(), [(X, Y)], remember, precision="bf16")).run((X, Y))
    assert seen == [torch.bfloat16]
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_without_parameters() -> None:
    target = Target(nn.Flatten(), [(X, Y)], nn.CrossEntropyLoss())
    assert not Program(target).run((X, Y)).loss.requires_grad
