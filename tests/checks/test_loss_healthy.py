"""Healthy losses of many kinds, on which no loss check that compares labels and predictions says a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.registry import Registry
from debugkit.testing import mlp, run_example

CHECKS = "loss-shape,loss-reduction,loss-choice,loss-connected"
N = 64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = noise(N, 8)
BINARY = (X[:, 0] > 0).long()
CLASSES = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()
VALUES = X @ torch.linspace(-1, 1, 8)
SEVERAL = 2 * X[:, :3] + X[:, 3:6]
FLAGS = (X[:, :3] > 0).float()
IDS = torch.randint(0, 20, (N, 7), generator=torch.Generator().manual_seed(0))


def loader(*columns: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=16, shuffle=True)


def log_likelihood(p: Tensor, y: Tensor) -> Tensor:
    return p.log_softmax(1).gather(1, y[:, None])[:, 0]


def supervised_contrast(z: Tensor, y: Tensor) -> Tensor:
    z = F.normalize(z, dim=1)
    itself = torch.eye(len(y)).bool()
    scores = (z @ z.T / 0.5).masked_fill(itself, -1e9)
    same = (y[:, None] == y[None]) & ~itself
    return -(scores.log_softmax(1) * same).sum(1).div(same.sum(1).clamp(min=1)).mean()


def hardest_triplets(z: Tensor, y: Tensor) -> Tensor:
    distance, same = torch.cdist(z, z), y[:, None] == y[None]
    nearest = distance.masked_fill(same, 1e9).min(1).values
    return F.relu((distance * same).max(1).values - nearest + 1).mean()


def ranked_pairs(p: Tensor, y: Tensor) -> Tensor:
    ahead = (y[:, None] > y[None]).float()
    return F.binary_cross_entropy_with_logits(p - p.T, ahead)


def pairs_by_distance(p: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(-((p.unsqueeze(1) - y) ** 2).sum(-1), torch.arange(len(p)))


def discrepancy(p: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-((a.unsqueeze(1) - b) ** 2).sum(-1) / 4).exp().mean()

    return kernel(p, p) + kernel(y, y) - 2 * kernel(p, y)


def focal(p: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(p, y, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def dice(p: Tensor, y: Tensor) -> Tensor:
    p = p.sigmoid()
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def binary_by_hand(p: Tensor, y: Tensor) -> Tensor:
    p = p[:, 0].sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def hinge(p: Tensor, y: Tensor) -> Tensor:
    return F.relu(1 - p[:, 0] * (2 * y.float() - 1)).mean()


def quantiles(p: Tensor, y: Tensor) -> Tensor:
    share, error = torch.tensor([0.1, 0.5, 0.9]), y[:, None] - p
    return torch.maximum(share * error, (share - 1) * error).mean()


def gaussian(p: Tensor, y: Tensor) -> Tensor:
    return -torch.distributions.Normal(p[:, 0], p[:, 1].exp()).log_prob(y).mean()


def mixture(p: Tensor, y: Tensor) -> Tensor:
    each = -0.5 * ((y[:, None] - p[:, 2:4]) / p[:, 4:].exp()) ** 2 - p[:, 4:]
    return -torch.logsumexp(p[:, :2].log_softmax(1) + each, 1).mean()


def concordance(p: Tensor, y: Tensor) -> Tensor:
    p = p[:, 0]
    apart = (p.mean() - y.mean()) ** 2
    together = ((p - p.mean()) * (y - y.mean())).mean()
    return 1 - 2 * together / (p.var(unbiased=False) + y.var(unbiased=False) + apart)


def signal_to_noise(p: Tensor, y: Tensor) -> Tensor:
    scaled = (p * y).sum(1, keepdim=True) / (y**2).sum(1, keepdim=True) * y
    return -10 * torch.log10((scaled**2).sum(1) / ((p - scaled) ** 2).sum(1)).mean()


def by_label_in_python(p: Tensor, y: Tensor) -> Tensor:
    scores = p.log_softmax(1)
    return sum((-scores[row, label] for row, label in enumerate(y.tolist())), torch.zeros(())) / len(y)


def smoothed_in_place(p: Tensor, y: Tensor) -> Tensor:
    target = torch.zeros_like(p).scatter_(1, y[:, None], 1.0)
    target.mul_(0.9).add_(0.025)
    return -(target * p.log_softmax(1)).sum(1).mean()


def of_tags(p: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(p.transpose(1, 2), y, reduction="none")
    counts = (y != 0).float()
    return (each * counts).sum() / counts.sum()


class ToCentres(nn.Module):
    """Cross-entropy and the distance to a learned centre per class."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(noise(2, 2))

    def forward(self, p: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(p, y) + 0.1 * ((p - self.centres[y]) ** 2).sum(1).mean()


FLAT = nn.Flatten(0)
TAGGER = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 5))
LOSSES: dict[str, tuple[int | nn.Module, Tensor, Tensor, Callable[..., Any]]] = {
    "cross_entropy": (4, X, CLASSES, nn.CrossEntropyLoss()),
    "smoothed": (4, X, CLASSES, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weighted": (2, X, BINARY, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))),
    "summed over their number": (2, X, BINARY, lambda p, y: F.cross_entropy(p, y, reduction="sum") / len(y)),
    "likelihood": (4, X, CLASSES, lambda p, y: -log_likelihood(p, y).mean()),
    "one-hot likelihood": (4, X, CLASSES, lambda p, y: -(F.one_hot(y, 4) * p.log_softmax(1)).sum(1).mean()),
    "margins": (4, X, CLASSES, nn.MultiMarginLoss()),
    "focal": (4, X, CLASSES, focal),
    "entropy bonus": (
        4,
        X,
        CLASSES,
        lambda p, y: F.cross_entropy(p, y) + 0.01 * (p.softmax(1) * p.log_softmax(1)).sum(1).mean(),
    ),
    "smoothed in place": (4, X, CLASSES, smoothed_in_place),
    "labels in Python": (4, X, CLASSES, by_label_in_python),
    "distances": (4, X, CLASSES, lambda d, y: (d.gather(1, y[:, None])[:, 0] + (-d).logsumexp(1)).mean()),
    "supervised contrast": (8, X, CLASSES, supervised_contrast),
    "hardest triplets": (8, X, CLASSES, hardest_triplets),
    "centres": (2, X, BINARY, ToCentres()),
    "hinge": (1, X, BINARY, hinge),
    "soft margin": (1, X, BINARY, lambda p, y: F.soft_margin_loss(p[:, 0], 2 * y.float() - 1)),
    "binary by hand": (1, X, BINARY.float(), binary_by_hand),
    "several labels": (3, X, FLAGS, nn.BCEWithLogitsLoss()),
    "dice": (3, X, FLAGS, dice),
    "squared": (nn.Sequential(mlp(classes=1), FLAT), X, VALUES, nn.MSELoss()),
    "squared column": (1, X, VALUES[:, None], nn.MSELoss()),
    "absolute, far away": (1, X, VALUES[:, None] + 1e3, lambda p, y: (p - y).abs().mean()),
    "huber": (3, X, SEVERAL, nn.HuberLoss()),
    "weights per output": (3, X, SEVERAL, lambda p, y: (torch.tensor([1.0, 2.0, 3.0]) * (p - y) ** 2).mean()),
    "quantiles": (3, X, VALUES, quantiles),
    "gaussian": (2, X, VALUES, gaussian),
    "mixture": (6, X, VALUES, mixture),
    "concordance": (1, X, VALUES, concordance),
    "cosine": (3, X, SEVERAL, lambda p, y: -F.cosine_similarity(p, y).mean()),
    "signal to noise": (3, X, SEVERAL, signal_to_noise),
    "ranked pairs": (1, X, VALUES, ranked_pairs),
    "pairs by distance": (3, X, SEVERAL, pairs_by_distance),
    "discrepancy": (3, X, SEVERAL, discrepancy),
    "tags": (TAGGER, IDS, IDS % 5, of_tags),
    "flat tags": (TAGGER, IDS, IDS % 5, lambda p, y: F.cross_entropy(p.view(-1, 5), y.view(-1))),
    "ratings": (
        1,
        X,
        (1.2 * X[:, 0] + 2.5).round().clamp(0, 4).long(),
        lambda p, y: F.mse_loss(p[:, 0], y.float()),
    ),
    "thresholds": (
        4,
        X,
        CLASSES,
        lambda p, y: F.binary_cross_entropy_with_logits(p, (y[:, None] > torch.arange(4)).float()),
    ),
}


def mixed_up(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    order = torch.randperm(len(x))
    outputs = model(0.7 * x + 0.3 * x[order])
    return 0.7 * F.cross_entropy(outputs, y) + 0.3 * F.cross_entropy(outputs, y[order])


def two_views(model: nn.Module, batch: Any) -> Tensor:
    x, _ = batch
    views = torch.cat([model(x + 0.1 * torch.randn_like(x)) for _ in range(2)])
    scores = F.normalize(views, dim=1) @ F.normalize(views, dim=1).T - 1e9 * torch.eye(2 * len(x))
    return F.cross_entropy(scores, torch.arange(2 * len(x)).roll(len(x)))


def denoised(model: nn.Module, batch: Any) -> Tensor:
    x, _ = batch
    noise = torch.randn_like(x)
    return F.mse_loss(model(0.8 * x + 0.6 * noise), noise)


def policy(model: nn.Module, batch: Any) -> Tensor:
    x, action = batch
    outputs = model(x)
    gain = x[:, 0] - outputs[:, 7]
    choice = torch.distributions.Categorical(logits=outputs[:, :4])
    acted = -(choice.log_prob(action) * gain.detach()).mean()
    return acted + 0.5 * gain.pow(2).mean() - 0.01 * choice.entropy().mean()


def clipped_ratio(model: nn.Module, batch: Any) -> Tensor:
    x, action = batch
    ratio = (log_likelihood(model(x), action) - x[:, 1] + 2).exp()
    gain = x[:, 0].abs() + 0.1
    return -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()


def value_of_actions(model: nn.Module, batch: Any) -> Tensor:
    x, action = batch
    with torch.no_grad():
        target = x[:, :1] + 0.9 * model(x.flip(1)).max(1, keepdim=True).values
    return F.smooth_l1_loss(model(x).gather(1, action[:, None]), target)


def adversary(model: nn.Module, batch: Any) -> Tensor:
    x, _ = batch
    real, made = model(x)[:, 0], model(torch.randn_like(x))[:, 0]
    ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
    given = F.binary_cross_entropy_with_logits
    return given(real, ones) + given(made, zeros) - given(made.detach() * 2, ones)


def critic(model: nn.Module, batch: Any) -> Tensor:
    return model(torch.randn_like(batch[0])).mean() - model(batch[0]).mean()


def sorted_by_value(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    order = x[:, 0].argsort()
    return F.cross_entropy(model(x[order]), y[order])


def own_backward(model: nn.Module, batch: Any) -> Tensor:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


STEPS = [
    mixed_up,
    two_views,
    denoised,
    policy,
    clipped_ratio,
    value_of_actions,
    adversary,
    critic,
    sorted_by_value,
    own_backward,
]


def assert_quiet(target: Target, registry: Registry) -> None:
    report = run_example(lambda: target, registry, select=CHECKS)
    loud = {
        result.check: (result.status, result.reason, [finding.message for finding in result.findings])
        for result in report.results
        if result.status in ("warn", "fail", "error")
    }
    assert not loud


@pytest.mark.parametrize("name", LOSSES)
def test_a_healthy_loss_is_quiet(name: str, registry: Registry) -> None:
    model, x, y, loss = LOSSES[name]
    body = mlp(classes=model) if isinstance(model, int) else model
    assert_quiet(Target(body, loader(x, y), loss), registry)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_healthy_step_is_quiet(step: Callable[..., Any], registry: Registry) -> None:
    assert_quiet(Target(mlp(classes=8), loader(X, CLASSES), training_step=step), registry)
