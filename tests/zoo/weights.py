"""Weights that were never learned, or never will be."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs

from . import pair

FREEZES = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html#torch.nn.Embedding.from_pretrained"
LORA = "https://arxiv.org/abs/2106.09685"
FIXUP = "https://arxiv.org/abs/1901.09321"
SILENT_LOAD = (
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict"
)


def learned(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """A matrix with a few strong directions beside noise, as training leaves one."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(rows, width, generator=generator) * 2 - 1
    left, right = (torch.linalg.qr(torch.randn(n, 64, generator=generator)).Q for n in (rows, width))
    return noise / width**0.5 + (left * 4 * torch.arange(1, 65) ** -0.7) @ right.T


def body(layers: int = 6, width: int = 128) -> nn.Sequential:
    """A trained stack."""
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU())
    for index in range(layers):
        linear = nn.Linear(width, width)
        linear.weight.data.copy_(learned(width, width, index))
        model.extend([linear, nn.ReLU()])
    return model.append(nn.Linear(width, 2))


class Residual(nn.Module):
    """Blocks ``x + last(relu(first(x)))``, or with a ReLU behind the last layer too."""

    def __init__(self, *, relu_behind: bool, width: int = 64) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 2)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.relu_behind = relu_behind
        for layer in self.last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for first, last in zip(self.first, self.last, strict=True):
            branch = last(first(x).relu())
            x = x + (branch.relu() if self.relu_behind else branch)
        return self.head(x)


@pair("alpha-outliers", source=FIXUP, where="last.0.weight")
def zero_initialised_behind_a_relu(broken: bool) -> Target:
    return Target(Residual(relu_behind=broken), blobs(), nn.CrossEntropyLoss())


@pair("alpha-outliers", level="warn", source=SILENT_LOAD, where="6.weight")
def layer_renamed_since_the_checkpoint(broken: bool) -> Target:
    saved, model = body(), body()
    for part in model:
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    state = saved.state_dict()
    if broken:
        state["projection.weight"] = state.pop("6.weight")
    model.load_state_dict(state, strict=False)
    model[6].requires_grad_(False)
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair("alpha-outliers", source=LORA, where="4.weight")
def adapter_merged_over_its_base(broken: bool) -> Target:
    model = body()
    delta = torch.randn(128, 8) @ torch.randn(8, 128) * 0.01
    with torch.no_grad():
        if broken:
            model[4].weight.copy_(delta)
        else:
            model[4].weight.add_(delta)
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair(
    "finite-weights", source="https://docs.pytorch.org/docs/stable/notes/amp_examples.html", where="4.weight"
)
def checkpoint_after_an_overflow(broken: bool) -> Target:
    model = body()
    if broken:
        with torch.no_grad():
            model[4].weight[3, 7] = torch.tensor(70000.0).half().float()
    return Target(model)


class Reader(nn.Module):
    """Token ids ``[batch, length]``, and a number for each row, to logits."""

    def __init__(self, tokens: nn.Embedding, kinds: nn.Embedding) -> None:
        super().__init__()
        self.tokens, self.kinds = tokens, kinds
        width = tokens.embedding_dim + kinds.embedding_dim
        self.body = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, ids: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        return self.body(torch.cat([self.tokens(ids).mean(1), self.kinds(kind)], 1))


def reading(tokens: nn.Embedding, kinds: nn.Embedding) -> Target:
    labels = torch.arange(128) % 2
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, tokens.num_embeddings // 2, (128, 10), generator=generator)
    ids += labels[:, None] * (tokens.num_embeddings // 2)
    kind = torch.randint(0, kinds.num_embeddings, (128,), generator=generator)
    data: DataLoader[Any] = DataLoader(TensorDataset(ids, kind, labels), batch_size=16, shuffle=True)
    return Target(
        Reader(tokens, kinds), data, training_step=lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2])
    )


@pair("frozen-embeddings", source=FREEZES, where="tokens")
def vectors_that_were_never_loaded(broken: bool) -> Target:
    table = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    return reading(nn.Embedding.from_pretrained(table, freeze=broken), nn.Embedding(5, 8))


@pair("frozen-embeddings", level="warn", source=FREEZES, where="kinds")
def small_random_table_frozen(broken: bool) -> Target:
    torch.manual_seed(0)
    kinds = nn.Embedding(5, 8)
    return reading(nn.Embedding(200, 32), kinds.requires_grad_(not broken))


@pair("frozen-embeddings", level="warn", source=FREEZES, where="kinds")
def frozen_by_a_part_of_its_name(broken: bool) -> Target:
    torch.manual_seed(0)
    kinds = nn.Embedding.from_pretrained(torch.eye(6))
    if broken:
        kinds = nn.Embedding(6, 40)
        nn.init.normal_(kinds.weight, std=0.02)
        kinds.requires_grad_(False)
    return reading(nn.Embedding(200, 32), kinds)
