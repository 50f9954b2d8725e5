"""Healthy models of tables, written by hand."""

from __future__ import annotations

import torch
from groups import adamw, sgd
from hand_vision import loader
from torch import nn
from torch.nn import functional

from debugkit import Target

SAMPLES, BATCH, INPUTS, WIDTH = 256, 16, 8, 32

Batch = tuple[torch.Tensor, ...]


def table(outputs: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[n, 8]`` about N(0, 1) and normalised targets ``[n, outputs]`` that follow from several of them."""
    generator = torch.Generator().manual_seed(13)
    x = torch.randn((SAMPLES, INPUTS), generator=generator)
    hidden = (x @ torch.randn((INPUTS, 6), generator=generator)).tanh()
    y = hidden @ torch.randn((6, outputs), generator=generator)
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    return x, (y - y.mean(0)) / y.std(0)


def balanced(scores: torch.Tensor, classes: int) -> torch.Tensor:
    """Classes ``[n]`` of equal size by rank of the score ``[n]``."""
    return scores.argsort().argsort() * classes // len(scores)


def perceptron(inside: int, outside: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inside, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outside)
    )


def mlp() -> Target:
    """A classifier of tables."""
    x, y = table()
    model = perceptron(INPUTS, 3)
    return Target(model, loader(x, balanced(y[:, 0], 3)), nn.CrossEntropyLoss(), optimizer=adamw(model))


def binary() -> Target:
    """One score and a binary cross entropy, trained with SGD."""
    x, y = table()
    model = perceptron(INPUTS, 1)
    labels = (y > y.median()).float()
    return Target(model, loader(x, labels), nn.BCEWithLogitsLoss(), optimizer=sgd(model))


def regression() -> Target:
    """Regression on a table."""
    model = perceptron(INPUTS, 1)
    return Target(model, loader(*table()), nn.MSELoss(), optimizer=adamw(model))


def robust_regression() -> Target:
    """Two targets, BatchNorm and a Huber loss."""
    model = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.BatchNorm1d(WIDTH), nn.GELU(), nn.Linear(WIDTH, 2))
    return Target(model, loader(*table(2)), nn.SmoothL1Loss(), optimizer=adamw(model))


def quantiles() -> Target:
    """Three quantiles with the pinball loss."""
    levels = torch.tensor([0.1, 0.5, 0.9])

    def pinball(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        error = wanted - found
        return torch.maximum(levels * error, (levels - 1) * error).mean()

    model = perceptron(INPUTS, 3)
    return Target(model, loader(*table()), pinball, optimizer=adamw(model))


def variance() -> Target:
    """Mean and variance of each target, with a Gaussian likelihood."""

    def loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        mean, log_variance = found.chunk(2, -1)
        return functional.gaussian_nll_loss(mean, wanted, log_variance.exp())

    model = perceptron(INPUTS, 2)
    return Target(model, loader(*table()), loss, optimizer=adamw(model))


def counts() -> Target:
    """Counts with a Poisson likelihood of the logarithm."""
    x, y = table()
    generator = torch.Generator().manual_seed(14)
    model = perceptron(INPUTS, 1)
    wanted = torch.poisson((0.5 * y + 0.5).exp(), generator=generator)
    return Target(model, loader(x, wanted), nn.PoissonNLLLoss(log_input=True), optimizer=adamw(model))


def many_labels() -> Target:
    """Five labels at once, each in about half of the samples."""
    x, y = table(5)
    model = perceptron(INPUTS, 5)
    return Target(model, loader(x, (y > 0).float()), nn.BCEWithLogitsLoss(), optimizer=adamw(model))


class _Mixture(nn.Module):
    def __init__(self, experts: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.chosen = chosen
        self.first = nn.Linear(INPUTS, WIDTH)
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.experts = nn.ModuleList(perceptron(WIDTH, WIDTH) for _ in range(experts))
        self.score = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.first(x).relu()
        shares = self.router(states).softmax(-1)
        weights, places = shares.topk(self.chosen)
        gates = torch.zeros_like(shares).scatter(1, places, weights / weights.sum(1, keepdim=True))
        mixed = torch.stack([expert(states) for expert in self.experts], 1)
        used = functional.one_hot(places, shares.shape[1]).sum(1).float().mean(0)
        balance = shares.shape[1] * (used / self.chosen * shares.mean(0)).sum()
        return self.score(states + (gates.unsqueeze(-1) * mixed).sum(1)), balance


def mixture() -> Target:
    """A mixture of experts with a loss that balances them."""
    x, y = table()
    model = _Mixture()

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        scores, balance = model(batch[0])
        return functional.cross_entropy(scores, batch[1]) + 0.01 * balance  # type: ignore[no-any-return]

    data = loader(x, balanced(y[:, 0], 3))
    return Target(model, data, training_step=step, optimizer=adamw(model))


MODELS = {
    "mlp": mlp,
    "binary": binary,
    "regression": regression,
    "robust-regression": robust_regression,
    "quantiles": quantiles,
    "variance": variance,
    "counts": counts,
    "many-labels": many_labels,
    "mixture": mixture,
}
