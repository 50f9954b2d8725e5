"""Healthy models of pairs, graphs and several tasks, written by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from groups import adamw
from hand_generative import factors
from hand_tables import BATCH, INPUTS, SAMPLES, WIDTH, Batch, balanced, perceptron, table
from hand_vision import loader
from torch import nn
from torch.nn import functional

from debugkit import Target


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = perceptron(24, 16), perceptron(24, 16)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        one, other = (
            functional.normalize(self.left(left), dim=1),
            functional.normalize(self.right(right), dim=1),
        )
        return self.scale.exp() * one @ other.T


def contrastive() -> Target:
    """Two encoders and a square of scores, each row's own partner being right."""
    rows = factors(48)
    model = _Pair()

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        scores = model(*batch)
        own = torch.arange(len(scores), device=scores.device)
        return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2

    data = loader(rows[:, :24].contiguous(), rows[:, 24:].contiguous())
    return Target(model, data, training_step=step, optimizer=adamw(model))


def siamese() -> Target:
    """One encoder for both of a pair, and the distance of the two."""
    x, y = table()
    generator = torch.Generator().manual_seed(15)
    other = torch.randperm(SAMPLES, generator=generator)
    apart = (y - y[other]).abs()
    model = perceptron(INPUTS, 4)

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        one, two, wanted = batch
        return functional.mse_loss((model(one) - model(two)).norm(dim=1, keepdim=True), wanted)

    data = loader(x, x[other], apart)
    return Target(model, data, training_step=step, optimizer=adamw(model))


class _Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH)
        self.score = nn.Linear(WIDTH, 3)

    def forward(self, features: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, sink = edges
        degree = torch.zeros(len(features), device=features.device).index_add(
            0, sink, torch.ones(len(sink), device=features.device)
        )
        gathered = torch.zeros_like(features).index_add(0, sink, features[source])
        states = (self.first(gathered / degree.clamp(min=1).unsqueeze(1)) + self.own(features)).relu()
        return self.score(states)  # type: ignore[no-any-return]


def graph() -> Target:
    """Message passing on one graph, which is the whole data set; half of the nodes have labels."""
    generator = torch.Generator().manual_seed(16)
    nodes = 90
    labels = torch.randperm(nodes, generator=generator) % 3
    features = torch.randn((nodes, INPUTS), generator=generator)
    features[:, :3] += functional.one_hot(labels, 3)
    chances = torch.where(labels[:, None] == labels[None], 0.2, 0.02).fill_diagonal_(0)
    edges = (torch.rand((nodes, nodes), generator=generator) < chances).nonzero().T.contiguous()
    known = torch.arange(nodes) % 2 == 0
    model = _Graph()

    def step(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        scores = model(batch["features"], batch["edges"])
        return functional.cross_entropy(scores[batch["known"]], batch["labels"][batch["known"]])

    data = [{"features": features, "edges": edges, "labels": labels, "known": known}]
    return Target(model, data, training_step=step, optimizer=adamw(model, 1e-2))


class _Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.LayerNorm(WIDTH))
        self.kind, self.amount = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.trunk(x)
        return {"kind": self.kind(states), "amount": self.amount(states)}


class Tasks(NamedTuple):
    """A batch of two tasks."""

    x: torch.Tensor
    kind: torch.Tensor
    amount: torch.Tensor


def two_tasks() -> Target:
    """A class and a number from one trunk, on batches that are named tuples."""
    x, y = table(2)
    rows = [Tasks(*row) for row in zip(x, balanced(y[:, 0], 3), y[:, 1:], strict=True)]
    model = _Trunk()

    def step(model: nn.Module, batch: Tasks) -> torch.Tensor:
        found = model(batch.x)
        return functional.cross_entropy(found["kind"], batch.kind) + functional.mse_loss(
            found["amount"], batch.amount
        )

    generator = torch.Generator().manual_seed(0)
    data: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        rows,  # type: ignore[arg-type]
        BATCH,
        shuffle=True,
        generator=generator,
    )
    return Target(model, data, training_step=step, optimizer=adamw(model))


@dataclasses.dataclass
class Rated:
    """A batch of users, things and ratings."""

    users: torch.Tensor
    things: torch.Tensor
    ratings: torch.Tensor


class _Recommender(nn.Module):
    def __init__(self, users: int, things: int) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(users, 8), nn.Embedding(things, 8)
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.things.weight, std=0.3)

    def forward(self, users: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
        return (self.users(users) * self.things(things)).sum(-1)  # type: ignore[no-any-return]


def recommender() -> Target:
    """Factors of users and things, on batches that are a dataclass."""
    generator = torch.Generator().manual_seed(17)
    users, things = torch.arange(24).repeat_interleave(16), torch.arange(16).repeat(24)
    taste = torch.randn((24, 3), generator=generator) @ torch.randn((3, 16), generator=generator)
    ratings = (taste / taste.std()).flatten() + 0.1 * torch.randn(384, generator=generator)
    rows = list(zip(users, things, ratings, strict=True))
    model = _Recommender(24, 16)

    def collate(samples: list[Batch]) -> Rated:
        return Rated(*(torch.stack(part) for part in zip(*samples, strict=True)))

    def step(model: nn.Module, batch: Rated) -> torch.Tensor:
        return functional.mse_loss(model(batch.users, batch.things), batch.ratings)

    order = torch.Generator().manual_seed(0)
    data: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        rows,  # type: ignore[arg-type]
        BATCH,
        shuffle=True,
        generator=order,
        collate_fn=collate,
    )
    return Target(model, data, training_step=step, optimizer=adamw(model, 1e-2))


MODELS = {
    "contrastive": contrastive,
    "siamese": siamese,
    "graph": graph,
    "two-tasks": two_tasks,
    "recommender": recommender,
}
