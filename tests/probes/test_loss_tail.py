"""The end of a step: its loss calls, and the terms that train nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.loss_tail import LossTail
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp


def tail(target: Target) -> LossTail:
    with Sandbox(target) as sandbox:
        found = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(LossTail)
    assert isinstance(found, LossTail)
    return found


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.side = mlp(classes=16), nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.body(x).relu()
        return self.kind(h), self.side(h)


def step(combine: Callable[[Any, Any, Any], Any]) -> LossTail:
    def training_step(model: nn.Module, batch: Any) -> Any:
        x, y = batch
        kind, side = model(x)
        return combine(F.cross_entropy(kind, y), F.cross_entropy(side, y % 2), (kind, y))

    return tail(Target(Two(), blobs(classes=4), training_step=training_step))


LOG: dict[str, Any] = {}


def test_terms_with_their_weights_and_heads() -> None:
    found = step(lambda main, side, _: main + 0.3 * side)
    assert [(term.name, term.heads[0]) for term in found.terms] == [
        ("cross_entropy", "kind.weight"),
        ("cross_entropy", "side.weight"),
    ]
    weights = [float(term.weights) for term in found.terms if term.weights is not None]
    assert weights == [1.0, pytest.approx(0.3)]
    assert all(term.from_batch for term in found.terms)
    assert not found.loose


@pytest.mark.parametrize(
    ("combine", "kind"),
    [
        (lambda main, side, _: main, "forgotten"),
        (lambda main, side, _: (main, main + side)[0], "forgotten"),
        (lambda main, side, _: {"loss": main, "side": side}, "forgotten"),
        (lambda main, side, _: main + side.detach(), "cut off"),
        (lambda main, side, _: main + 0.1 * side.detach(), "cut off"),
        (lambda main, side, _: main + side.item(), "cut off"),
        (lambda main, side, _: sum([main, side.detach()]) / 2, "cut off"),
        (lambda main, side, _: main + 0.0 * side, "without weight"),
        (
            lambda main, side, _: (torch.stack([main, side]) * torch.tensor([1.0, 0.0])).sum(),
            "without weight",
        ),
    ],
)
def test_a_head_that_nothing_trains(combine: Callable[..., Any], kind: str) -> None:
    (loose,) = step(combine).loose
    assert (loose.kind, loose.name, loose.by_user) == (kind, "cross_entropy", True)
    assert loose.trains == ("side.weight", "side.bias")


@pytest.mark.parametrize(
    "combine",
    [
        lambda main, side, _: main * side,
        lambda main, side, _: main * torch.exp(-side.detach()) + side,
        lambda main, side, _: main / main.detach() + side / side.detach(),
        lambda main, side, _: main + side + (main - main.detach()),
        lambda main, side, _: (main + side) / 4,
        lambda main, side, _: torch.logsumexp(torch.stack([main, side]), 0),
    ],
)
def test_terms_that_count(combine: Callable[..., Any]) -> None:
    assert not step(combine).loose


def test_a_metric_on_the_same_predictions_is_shared() -> None:
    def combine(main: torch.Tensor, side: torch.Tensor, seen: Any) -> torch.Tensor:
        kind, y = seen
        LOG["mae"] = F.l1_loss(kind.softmax(1), F.one_hot(y, 4).float()).item()
        return main + side

    (loose,) = step(combine).loose
    assert loose.shared
    assert loose.read


def test_a_number_under_no_grad_is_a_term_once_it_is_added() -> None:
    def training_step(model: nn.Module, batch: Any) -> torch.Tensor:
        kind, side = model(batch[0])
        with torch.no_grad():
            penalty = side.square().mean()
        return F.cross_entropy(kind, batch[1]) + 0.1 * penalty

    (loose,) = tail(Target(Two(), blobs(classes=4), training_step=training_step)).loose
    assert (loose.kind, loose.name, loose.by_user) == ("cut off", None, True)


def test_a_number_kept_on_a_module_has_a_place() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.penalties = mlp(classes=4), list[torch.Tensor]()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z: torch.Tensor = self.body(x)
            self.penalties.append(z.square().mean())
            return z

    (loose,) = tail(Target(Penalised(), blobs(classes=4), nn.CrossEntropyLoss())).loose
    assert (loose.place, loose.held, loose.read) == ("penalties", True, False)


def test_targets_given_first() -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :1]), batch_size=16)
    (term,) = tail(Target(mlp(classes=1), data, lambda p, y: F.mse_loss(y, p))).terms
    assert term.heads == ("2.weight", "2.bias")


def test_the_rows_of_a_small_batch_are_halved() -> None:
    x = torch.randn(32, 8)
    y = torch.arange(32) % 4
    for size, rows in ((16, 8), (4, 2), (1, 1)):
        data = DataLoader(TensorDataset(x, y), batch_size=size)
        assert tail(Target(mlp(classes=4), data, nn.CrossEntropyLoss())).rows == rows


def test_teacher_forcing_is_no_margin() -> None:
    def margin(model: nn.Module, batch: Any) -> torch.Tensor:
        z = model(batch[0])
        return F.cross_entropy(z - 0.3 * F.one_hot(batch[1], 4), batch[1])

    def forced(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0] + batch[1][:, None]), batch[1])

    for made, expected in ((margin, True), (forced, False)):
        (term,) = tail(Target(mlp(classes=4), blobs(classes=4), training_step=made)).terms
        assert term.knows_labels is expected
