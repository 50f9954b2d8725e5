"""How low a loss can go between its output transform and its loss function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.loss_floor import Floor, LossFloor
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp

Change = Callable[[torch.Tensor], torch.Tensor]


def floors(target: Target) -> tuple[Floor, ...]:
    with Sandbox(target) as sandbox:
        found = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(LossFloor)
    assert isinstance(found, LossFloor)
    return found.floors


def classes(change: Any, loss: Callable[..., Any] = F.cross_entropy, count: int = 4) -> Floor:
    (floor,) = floors(Target(mlp(classes=count), blobs(classes=count), lambda z, y: loss(change(z), y)))
    return floor


def numbers(change: Change, targets: Change, loss: Callable[..., Any] = F.mse_loss) -> Floor:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, targets(x[:, :1])), batch_size=16)
    (floor,) = floors(Target(mlp(classes=1), data, lambda z, y: loss(change(z), y)))
    return floor


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z,
        lambda z: z / 50,
        lambda z: 30 * torch.tanh(z / 30),
        lambda z: z.clamp(-20, 20),
        lambda z: z - z.mean(1, keepdim=True),
        lambda z: F.layer_norm(z, (4,)) * 10,
        lambda z: F.pad(z, (0, 1), value=-1e9),
        lambda z: -(z**2),
        lambda z: (z.softmax(1) + 1e-8).log(),
    ],
)
def test_harmless_ways_from_logits_to_cross_entropy(change: Change) -> None:
    floor = classes(change)
    assert floor.unjudged is None
    assert floor.share < 0.01


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("change", [torch.tanh, lambda z: z.clamp(-1, 1), F.softsign, F.normalize])
def test_logits_within_one(change: Change, count: int) -> None:
    floor = classes(change, count=count)
    exact = math.log(1 + (count - 1) * math.exp(-2))
    assert floor.floor == pytest.approx(exact, rel=0.06) or (change is F.normalize and floor.floor > exact)
    assert floor.share > 0.1


def test_the_entropy_of_smoothed_labels_does_not_count() -> None:
    floor = classes(lambda z: 20 * z.tanh(), lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2))
    assert floor.free > 0.4
    assert floor.share < 0.01


def test_log_probabilities_are_judged_by_what_they_were_made_from() -> None:
    assert classes(lambda z: z.log_softmax(1), F.nll_loss).raw
    assert classes(lambda z: z.tanh().log_softmax(1), F.nll_loss).share > 0.2


@pytest.mark.parametrize(
    ("change", "targets"),
    [
        (torch.relu, torch.abs),
        (F.softplus, torch.exp),
        (torch.sigmoid, lambda y: (y > 0).float()),
        (lambda z: 5.5 * z.sigmoid(), lambda y: y.clamp(-2, 2) + 3),
        (lambda z: 2 * z.tanh(), lambda y: y.clamp(-2, 2)),
    ],
)
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.huber_loss, lambda p, y: ((p - y) ** 2).mean()])
def test_targets_within_reach(change: Change, targets: Change, loss: Callable[..., Any]) -> None:
    floor = numbers(change, targets, loss)
    assert floor.unjudged is None
    assert floor.share < 0.01


@pytest.mark.parametrize(
    ("change", "targets"),
    [
        (torch.relu, lambda y: y - 1),
        (torch.sigmoid, lambda y: 3 * y),
        (torch.tanh, lambda y: 3 * y),
        (lambda z: 1 / (1 + (-z).exp()), lambda y: 3 * y),
    ],
)
@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, lambda p, y: (y - p).abs().mean()])
def test_targets_out_of_reach(change: Change, targets: Change, loss: Callable[..., Any]) -> None:
    floor = numbers(change, targets, loss)
    assert floor.share > 0.1


def test_masked_targets_do_not_count() -> None:
    def loss(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        kept = (y > -90).float()
        return (F.mse_loss(p, y, reduction="none") * kept).sum() / kept.sum()

    def targets(y: torch.Tensor) -> torch.Tensor:
        return torch.where(y > 0.5, torch.full_like(y, -99.0), y.sigmoid())

    assert numbers(torch.sigmoid, targets, loss).share < 0.01


def test_mixed_labels_are_one_problem() -> None:
    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.7 * F.cross_entropy(z, y) + 0.3 * F.cross_entropy(z, y.roll(1))

    floor = classes(lambda z: 10 * z.tanh(), loss)
    assert floor.free > 0.2
    assert floor.share < 0.01


def test_targets_that_are_not_from_the_batch_are_not_judged() -> None:
    def contrast(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        similar = F.normalize(z) @ F.normalize(z).T / 0.5
        return F.cross_entropy(similar, torch.arange(len(z)))

    (floor,) = floors(Target(mlp(classes=8), blobs(), contrast))
    assert floor.unjudged is not None


def test_a_learned_scale_makes_up_for_a_bound() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = mlp(classes=4), nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.body(x).tanh() * self.scale
            return result

    (floor,) = floors(Target(Scaled(), blobs(classes=4), nn.CrossEntropyLoss()))
    assert floor.share == 0.0


def test_the_hidden_state_of_an_lstm_is_bounded() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 1, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.lstm(x)[0][:, -1]
            return result

    x = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x.sum((1, 2))[:, None]), batch_size=16)
    (floor,) = floors(Target(Last(), data, nn.MSELoss()))
    assert (floor.low, floor.high) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))
    assert floor.share > 0.1


def test_targets_are_taken_from_the_whole_batch() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(64, 1)
    y[1::2] = -1
    (floor,) = floors(Target(nn.Sequential(mlp(classes=1), nn.ReLU()), [(x, y)], nn.MSELoss()))
    assert floor.floor == pytest.approx(0.5)
    assert floor.chance == pytest.approx(0.25)
