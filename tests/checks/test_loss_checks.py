"""loss-shape, loss-reduction, loss-choice and loss-connected beyond their own examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result
from debugkit.testing import blobs, mlp

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


def loader(*columns: torch.Tensor, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=batch_size, shuffle=True)


def judge(check: str, target: Target, **config: Any) -> Result:
    return debugkit.run(target, select=check, config=config)[check]


def said(result: Result) -> str:
    return " | ".join([result.reason or "", *(finding.message for finding in result.findings)])


def test_one_sample_per_batch_can_not_be_judged() -> None:
    result = judge("loss-shape", Target(mlp(), blobs(batch_size=1), F.cross_entropy))
    assert result.status == "skip"


def test_targets_that_are_repeated_are_a_warning() -> None:
    result = judge("loss-shape", Target(mlp(classes=3), loader(X, X[:, :1]), F.mse_loss))
    assert result.status == "warn"
    assert "[16, 3] and [16, 1]" in said(result)


def test_a_loss_outside_torch_is_seen_by_its_answer() -> None:
    class Error(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (p.mean() - y.mean()).abs() + 0 * p.sum()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            return gradient.expand(16, 1), None

    result = judge("loss-shape", Target(mlp(classes=1), loader(X, X[:, 0]), Error.apply))
    assert result.status in ("pass", "skip")


def test_means_of_class_labels_fail_and_means_of_numbers_warn() -> None:
    def loss(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (p.mean() - y.float().mean()) ** 2

    assert judge("loss-shape", Target(mlp(classes=1), blobs(), loss)).status == "fail"
    assert judge("loss-shape", Target(mlp(classes=1), loader(X, X[:, 0]), loss)).status == "warn"


def test_labels_that_an_autoencoder_does_not_need_are_a_note() -> None:
    class Keeps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.body(x), x

    result = judge("loss-shape", Target(Keeps(), blobs(), lambda out, y: F.mse_loss(*out)))
    assert result.status == "pass"
    assert "does not depend on their labels" in said(result)


@pytest.mark.parametrize("size", [2, 3, 4, 64])
def test_sums_are_seen_at_any_batch_size(size: int) -> None:
    target = Target(mlp(), blobs(batch_size=size), torch.nn.CrossEntropyLoss(reduction="sum"))
    assert judge("loss-reduction", target).status == "warn"


def test_a_sum_over_a_fixed_number_is_a_note() -> None:
    target = Target(mlp(), blobs(), lambda p, y: F.cross_entropy(p, y, reduction="sum") / 16)
    result = judge("loss-reduction", target)
    assert result.status == "pass"
    assert "1 / 16" in said(result)


def test_the_learning_rate_that_a_sum_amounts_to() -> None:
    model = mlp()
    rate = torch.optim.SGD(model.parameters(), lr=0.1)
    target = Target(model, blobs(), torch.nn.CrossEntropyLoss(reduction="sum"), optimizer=rate)
    assert "`lr=0.1` acts like 1.6" in said(judge("loss-reduction", target))


def test_a_summed_bound_of_a_variational_autoencoder_is_a_note() -> None:
    class Bound(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = mlp(classes=4), mlp(features=2, classes=8)

        def forward(self, x: torch.Tensor) -> Any:
            mean, scale = self.encoder(x).chunk(2, 1)
            code = mean + torch.randn_like(mean) * scale.exp()
            divergence = 0.5 * (mean**2 + (2 * scale).exp() - 2 * scale - 1).sum()
            return F.mse_loss(self.decoder(code), x, reduction="sum") + divergence

    target = Target(Bound(), loader(X), training_step=lambda model, batch: model(batch[0]))
    result = judge("loss-reduction", target)
    assert result.status == "pass"
    assert "evidence lower bound" in said(result)


def test_a_step_for_one_batch_size_can_not_be_judged() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0].view(16, 8)), batch[1])

    assert judge("loss-reduction", Target(mlp(), blobs(), training_step=step)).status == "skip"


def weighted(counts: list[int], weights: list[float]) -> Result:
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights))
    data = loader(torch.randn(len(y), 8), y, batch_size=64)
    return judge("loss-choice", Target(mlp(classes=len(counts)), data, loss))


@pytest.mark.parametrize(
    ("counts", "weights", "status"),
    [
        ([160, 60, 30], [0.5, 1.4, 2.8], "pass"),
        ([160, 60, 30], [2.8, 0.5, 1.4], "warn"),
        ([160, 60, 30], [3.0, 2.0, 1.0], "warn"),
        ([160, 60, 30], [1.0, 1.0, 3.0], "pass"),
        ([160, 60, 30], [1.0, 1.0, 1.0], "pass"),
        ([90, 80, 80], [3.0, 1.0, 1.0], "pass"),
        ([200, 50], [0.2, 0.8], "pass"),
        ([200, 50], [0.8, 0.2], "warn"),
        ([20, 5], [0.8, 0.2], "pass"),
    ],
)
def test_class_weights(counts: list[int], weights: list[float], status: str) -> None:
    assert weighted(counts, weights).status == status


def regression(y: torch.Tensor, x: torch.Tensor = X) -> Result:
    return judge(
        "loss-choice", Target(mlp(classes=1), loader(x, y), lambda p, y: F.mse_loss(p[:, 0], y.float()))
    )


def test_ratings_are_amounts() -> None:
    result = regression((X[:, 0] * 1.2 + 2.5).round().clamp(0, 4).long())
    assert result.status == "pass"
    assert "ratings" in said(result)


def test_ratings_that_depend_on_a_square_are_amounts() -> None:
    assert regression((2 * X[:, 0] ** 2).round().clamp(0, 5).long()).status == "pass"


def test_numbers_of_classes_are_not() -> None:
    y = torch.arange(256) % 5
    centres = 3 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert regression(y, X + centres[y]).status == "warn"


def test_numbers_without_any_relation_to_the_inputs_are_not_judged() -> None:
    assert regression(torch.arange(256) % 5).status == "pass"


def test_one_hot_rows_of_few_samples_are_not_judged() -> None:
    y = F.one_hot(torch.arange(16) % 3, 3).float()
    target = Target(mlp(classes=3), loader(X[:16], y), torch.nn.BCEWithLogitsLoss())
    assert judge("loss-choice", target).status == "pass"


def test_probabilities_and_background_rows_are_fine() -> None:
    y = F.one_hot(torch.arange(256) % 3, 3).float()
    soft = Target(mlp(classes=3), loader(X, 0.9 * y + 0.1 / 3), torch.nn.CrossEntropyLoss())
    assert judge("loss-choice", soft).status == "pass"
    y[::9] = 0
    assert (
        judge("loss-choice", Target(mlp(classes=3), loader(X, y), torch.nn.BCEWithLogitsLoss())).status
        == "pass"
    )


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (torch.nn.CrossEntropyLoss(weight=torch.ones(3)), "3 values for 4 outputs"),
        (torch.nn.CrossEntropyLoss(ignore_index=-1), "targets of -100"),
    ],
)
def test_a_loss_that_raises_is_explained(loss: Callable[..., Any], told: str) -> None:
    y = torch.arange(256) % 4
    if "-100" in told:
        y[::3] = -100
    result = judge("loss-choice", Target(mlp(classes=4), loader(X, y), loss))
    assert result.status == "fail"
    assert told in said(result)


def test_labels_out_of_range_are_left_to_their_own_check() -> None:
    result = judge("loss-choice", Target(mlp(classes=3), loader(X, torch.arange(256) % 4), F.cross_entropy))
    assert result.status == "skip"


def test_a_term_that_is_maximised_beside_another_is_fine() -> None:
    def loss(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(p, y) - 0.1 * F.cross_entropy(p, 1 - y)

    assert judge("loss-connected", Target(mlp(), blobs(), loss)).status == "pass"


def test_a_negative_loss_that_the_optimizer_maximises_is_fine() -> None:
    model = mlp()
    rate = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    target = Target(model, blobs(), lambda p, y: -F.cross_entropy(p, y), optimizer=rate)
    assert judge("loss-connected", target).status == "pass"


def test_a_loss_that_trains_only_another_module_leads_nowhere() -> None:
    other = mlp(seed=1)
    step = lambda model, batch: F.cross_entropy(other(batch[0]), batch[1])  # noqa: E731
    result = judge("loss-connected", Target(mlp(), blobs(), training_step=step))
    assert result.status == "fail"
    assert "no parameter is in" in said(result)


def test_a_step_that_runs_backward_itself_and_returns_a_number_is_not_cut() -> None:
    def step(model: torch.nn.Module, batch: Any) -> float:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert judge("loss-connected", Target(mlp(), blobs(), training_step=step)).status == "skip"


def test_missing_values_in_the_batch_are_left_to_their_own_check() -> None:
    x = X.clone()
    x[3, 2] = float("nan")
    data = [(x[:16], torch.arange(16) % 2)]
    result = judge("loss-connected", Target(mlp(), data, F.cross_entropy))
    assert result.status == "skip"
    assert "finite-inputs" in said(result)


def test_only_the_loss_is_blamed_when_it_leads_nowhere() -> None:
    target = Target(mlp(), blobs(), lambda p, y: F.cross_entropy(p.detach(), y))
    report = debugkit.run(target, select="gradients,loss-connected", config={"max-cost": "backward"})
    assert [result.check for result in report.results if result.status == "fail"] == ["loss-connected"]


def test_a_loss_that_trains_nothing_is_told_once() -> None:
    def loss(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tensor(F.cross_entropy(p, y).item(), requires_grad=True)

    report = debugkit.run(Target(mlp(), blobs(), loss), select=["loss-connected", "auxiliary-loss"])
    assert [report[check].status for check in ("loss-connected", "auxiliary-loss")] == ["fail", "skip"]
