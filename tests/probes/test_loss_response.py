"""What the loss makes of labels, and which way its terms pull."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.loss_growth import LossGrowth
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.non_finite import NonFinite
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def loader(*columns: torch.Tensor, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=batch_size)


def collect(target: Target, kind: Any = LossResponse) -> Any:
    with Sandbox(target) as sandbox:
        ledger = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()})
        return ledger.get(kind)


def response(loss: Callable[..., Any], data: Any = None, model: Any = None) -> LossResponse:
    found = collect(Target(model or mlp(classes=4), data or blobs(classes=4), loss))
    assert isinstance(found, LossResponse)
    return found


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (F.cross_entropy, "paired"),
        (lambda p, y: F.cross_entropy(p, p.argmax(1)), "unused"),
        (lambda p, y: (p.softmax(1).mean(0) - F.one_hot(y, 4).float().mean(0)).pow(2).sum(), "unpaired"),
        (lambda p, y: F.cross_entropy(p, torch.tensor(y.tolist())), "unknown"),
        (lambda p, y: (torch.cdist(p, p) * (y[:, None] == y)).mean(), "paired"),
    ],
    ids=["cross-entropy", "own answer", "means", "through Python", "metric learning"],
)
def test_what_the_loss_makes_of_labels(loss: Callable[..., Any], expected: str) -> None:
    assert response(loss).labels == expected


def test_a_head_of_zeros_still_shows_how_labels_are_used() -> None:
    model = mlp(classes=4)
    torch.nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model[2].bias)  # type: ignore[arg-type]
    assert response(F.cross_entropy, model=model).labels == "paired"


def test_absolute_errors_far_from_the_targets_are_paired() -> None:
    data = loader(X, X[:, :1] + 2000)
    assert response(lambda p, y: (p - y).abs().mean(), data, mlp(classes=1)).labels == "paired"


def test_absolute_errors_far_from_whole_numbers_are_paired() -> None:
    data = loader(X, (2000 + 10 * X[:, :1]).round().long())
    assert response(lambda p, y: (p - y).abs().mean(), data, mlp(classes=1)).labels == "paired"


def test_the_axis_that_is_repeated_is_the_one_to_roll() -> None:
    data = loader(X.repeat(1, 2)[:16].reshape(16, 16, 1), X.repeat(1, 2)[:16])
    found = response(lambda p, y: (p - y).abs().mean(), data, torch.nn.Linear(1, 1))
    assert [crossing.blind for crossing in found.crossings] == [True]


COSTS = (torch.arange(4)[:, None] - torch.arange(4)).abs().float()


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, y: (p.softmax(1) * COSTS[y]).sum(1).mean(),
        lambda p, y: (p.softmax(1) * (1 - F.one_hot(y, 4))).sum(1).mean(),
        lambda p, y: (p.sigmoid() * (1 - F.one_hot(y, 4))).sum(1).mean(),
        lambda p, y: (p.log_softmax(1)[:, 0] * (y + 1)).mean(),
        lambda p, y: p[:, :2].softmax(1).gather(1, 1 - y[:, None] % 2).mean(),
    ],
    ids=["cost matrix", "wrong answers", "false positives", "cost of an action", "the wrong one of two"],
)
def test_an_expected_cost_pulls_away_from_nothing(loss: Callable[..., Any]) -> None:
    assert "away" not in [term.pull for term in response(loss).terms]


def test_labels_of_one_class_say_nothing() -> None:
    found = response(F.cross_entropy, loader(X, torch.zeros(64, dtype=torch.long)))
    assert (found.labels, found.labels_vary) == ("unknown", False)


@pytest.mark.parametrize(
    ("loss", "pull"),
    [
        (F.cross_entropy, "towards"),
        (lambda p, y: -F.cross_entropy(p, y), "away"),
        (lambda p, y: 0 * F.cross_entropy(p, y), "none"),
        (lambda p, y: -(p - F.one_hot(y, 4)).pow(2).mean(), "away"),
        (lambda p, y: (p - F.one_hot(y, 4)).abs().mean(), "towards"),
        (lambda p, y: p.log_softmax(1).gather(1, y[:, None]).mean(), "away"),
        (lambda p, y: -(p.log_softmax(1) * F.one_hot(y, 4)).sum(1).mean(), "towards"),
        (lambda p, y: (p.softmax(1) * F.one_hot(y, 4)).sum(1).mean(), "away"),
        (lambda p, y: F.cosine_similarity(p, F.one_hot(y, 4).float()).mean(), "away"),
        (lambda p, y: (F.cross_entropy(p, y, reduction="none") * torch.randn(len(y))).mean(), "unclear"),
    ],
)
def test_the_pull_of_a_term(loss: Callable[..., Any], pull: str) -> None:
    assert [term.pull for term in response(loss).terms] == [pull]


def test_a_target_that_the_model_gets_too_is_told() -> None:
    step = lambda model, batch: F.mse_loss(model(batch[0]), batch[0])  # noqa: E731
    (term,) = collect(Target(mlp(classes=8), blobs(), training_step=step)).terms
    assert (term.fed, term.origin) == (True, "batch")


def test_the_sample_count_is_no_other_length() -> None:
    data = loader(torch.randn(64, 6), torch.randn(64, 5))
    assert collect(Target(mlp(6, 5), data, F.mse_loss)).rows == 4


def test_recurrent_dropout_comes_back() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.rnn(x[:, None])[0][:, 0])

    model = Net()
    target = Target(model, blobs(), F.cross_entropy)
    assert collect(target, LossGrowth).ratio == pytest.approx(1)
    assert model.rnn.dropout == 0.5


@pytest.mark.parametrize(
    ("loss", "ratio", "totals"),
    [
        (F.cross_entropy, 1, 0),
        (torch.nn.CrossEntropyLoss(reduction="sum"), 2, 1),
        (lambda p, y: F.cross_entropy(p, y) / len(y), 0.5, 0),
        (lambda p, y: (p[:, :1] - p[:, 1]).pow(2).sum(), 4, 1),
    ],
)
def test_growth(loss: Callable[..., Any], ratio: float, totals: int) -> None:
    growth = collect(Target(mlp(), blobs(), loss), LossGrowth)
    assert growth.ratio == pytest.approx(ratio, rel=1e-4)
    assert len(growth.totals) == totals
    assert (growth.rows, growth.batch_size) == (4, 16)


def test_the_first_value_that_is_not_finite() -> None:
    def loss(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        unlikely = (1000 * p).softmax(1).amin(1)
        return -(unlikely * unlikely.log()).mean()

    found = collect(Target(mlp(), blobs(), loss), NonFinite)
    assert (found.kind, found.name) == ("result", "mul")
    assert found.infinite is not None
    assert found.infinite[0] == "log"


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")  # type: ignore[index]
    found = collect(Target(model, blobs(), F.cross_entropy), NonFinite)
    assert (found.kind, found.name) == ("parameter", "0.weight")
