"""Mistakes between the model's output and its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

KARPATHY = "https://karpathy.github.io/2019/04/25/recipe/"
CE_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"


class Net(nn.Module):
    """A classifier whose output passes through ``last``."""

    def __init__(self, last, classes: int = 4) -> None:
        super().__init__()
        self.body = mlp(classes=classes)
        self.last = last

    def forward(self, x):
        return self.last(self.body(x))


class Tagger(nn.Module):
    """One class per token, classes in dim 1."""

    def __init__(self, last) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.head = nn.Linear(16, 5)
        self.last = last

    def forward(self, ids):
        return self.last(self.head(self.embed(ids))).transpose(1, 2)


def same(x):
    return x


def tags() -> DataLoader:
    ids = torch.randint(0, 20, (64, 7), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids, ids % 5), batch_size=16, shuffle=True)


def labels_of_three() -> DataLoader:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, :3] > 0).float()), batch_size=16, shuffle=True)


@pair("logits-vs-probs", source=KARPATHY)
def softmax_before_cross_entropy(broken: bool) -> Target:
    last = (lambda x: F.softmax(x, dim=1)) if broken else same
    return Target(Net(last), blobs(classes=4), nn.CrossEntropyLoss())


@pair("logits-vs-probs", source="https://stackoverflow.com/q/55675345", where="1")
def softmax_layer_before_cross_entropy(broken: bool) -> Target:
    layers = [mlp(classes=10), nn.Softmax(dim=-1)] if broken else [mlp(classes=10)]
    return Target(nn.Sequential(*layers), blobs(classes=10, samples=160), nn.CrossEntropyLoss())


@pair("logits-vs-probs", source=CE_DOCS)
def clamped_softmax_before_cross_entropy(broken: bool) -> Target:
    last = (lambda x: x.softmax(-1).clamp(1e-7, 1 - 1e-7)) if broken else same
    return Target(Net(last), blobs(classes=4), nn.CrossEntropyLoss())


@pair("logits-vs-probs", source=CE_DOCS)
def softmax_per_token(broken: bool) -> Target:
    return Target(Tagger((lambda x: x.softmax(-1)) if broken else same), tags(), nn.CrossEntropyLoss())


@pair("logits-vs-probs", source=KARPATHY)
def sigmoid_before_bce_with_logits(broken: bool) -> Target:
    return Target(
        Net(torch.sigmoid if broken else same, classes=3), labels_of_three(), nn.BCEWithLogitsLoss()
    )


@pair(
    "logits-vs-probs", source="https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html"
)
def softmax_on_multi_label(broken: bool) -> Target:
    last = (lambda x: x.softmax(-1)) if broken else same
    return Target(Net(last, classes=3), labels_of_three(), nn.BCEWithLogitsLoss())


@pair("logits-vs-probs", source="https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html")
def softmax_into_nll(broken: bool) -> Target:
    last = nn.Softmax(dim=1) if broken else nn.LogSoftmax(dim=1)
    return Target(Net(last), blobs(classes=4), nn.NLLLoss())


@pair("logits-vs-probs", source="https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html")
def logits_into_nll(broken: bool) -> Target:
    return Target(Net(same if broken else nn.LogSoftmax(dim=1)), blobs(classes=4), nn.NLLLoss())


@pair("logits-vs-probs", source="TheDeepChecker, wrong_softmax_impl: https://arxiv.org/abs/2204.00694")
def log_softmax_over_the_batch(broken: bool) -> Target:
    return Target(Net(nn.LogSoftmax(dim=0 if broken else 1)), blobs(classes=4), nn.NLLLoss())


@pair("logits-vs-probs", source="TheDeepChecker, wrong_softmax_impl: https://arxiv.org/abs/2204.00694")
def softmax_over_the_batch(broken: bool) -> Target:
    return Target(
        Net(nn.Softmax(dim=0 if broken else 1)),
        blobs(classes=4),
        lambda p, y: F.nll_loss(p.log(), y),
    )


@pair("logits-vs-probs", source="https://stackoverflow.com/q/33969059")
def softmax_over_one_unit(broken: bool) -> Target:
    last = nn.Softmax(dim=-1) if broken else nn.Sigmoid()
    return Target(Net(last, classes=1), blobs(), lambda p, y: F.binary_cross_entropy(p[:, 0], y.float()))


@pair("logits-vs-probs", source="https://stackoverflow.com/q/48251943")
def relu_on_the_logits(broken: bool) -> Target:
    return Target(Net(nn.ReLU() if broken else same), blobs(classes=4), nn.CrossEntropyLoss())


@pair("logits-vs-probs", source="https://docs.pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html")
def probabilities_into_kl_div(broken: bool) -> Target:
    last = nn.Softmax(dim=-1) if broken else nn.LogSoftmax(dim=-1)
    return Target(
        Net(last),
        blobs(classes=4),
        lambda p, y: F.kl_div(p, F.one_hot(y, 4).float(), reduction="batchmean"),
    )


@pair("logits-vs-probs", source=KARPATHY)
def hand_written_cross_entropy_on_probabilities(broken: bool) -> Target:
    def loss(p, y):
        p = F.softmax(p, dim=-1) if broken else p
        return -F.log_softmax(p, dim=-1).gather(1, y[:, None]).mean()

    return Target(mlp(classes=4), blobs(classes=4), loss)


@pair("logits-vs-probs", source=CE_DOCS)
def softmax_inside_a_checkpoint(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(classes=4)

        def block(self, x):
            return self.body(x).softmax(-1) if broken else self.body(x)

        def forward(self, x):
            return checkpoint(self.block, x.requires_grad_(True), use_reentrant=True)

    return Target(Net(), blobs(classes=4), nn.CrossEntropyLoss())


@pair("logits-vs-probs", level="warn", source=CE_DOCS)
def log_softmax_before_cross_entropy(broken: bool) -> Target:
    return Target(Net(nn.LogSoftmax(dim=-1) if broken else same), blobs(classes=4), nn.CrossEntropyLoss())
