"""Metrics that do not know a perfect prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

TAXONOMY = "Humbatova et al. 2020, https://arxiv.org/abs/1910.11015"
BROADCAST = "https://discuss.pytorch.org/t/target-size-that-is-different-to-the-input-size/64305"
FORUM = "https://discuss.pytorch.org/t/multilabel-classification-how-to-binarize-scores-how-to-learn-thresholds/25396"
RUN_CLM = (
    "https://github.com/huggingface/transformers/blob/main/examples/pytorch/language-modeling/run_clm.py"
)
TOKENS = "https://huggingface.co/docs/transformers/tasks/token_classification"


def regression(column: bool = True) -> DataLoader:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x.abs().sum(1) - 6
    return DataLoader(TensorDataset(x, y[:, None] if column else y), batch_size=32, shuffle=True)


@pair("metric-sanity", source=TAXONOMY, where="not told apart")
def argmax_over_the_batch(broken: bool) -> Target:
    def accuracy(outputs, y):
        return (outputs.argmax(0 if broken else 1) == y).float().mean()

    return Target(mlp(classes=16, hidden=64), blobs(128, classes=16), nn.CrossEntropyLoss(), metric=accuracy)


@pair("metric-sanity", source=BROADCAST, where="own target")
def error_of_a_column_against_a_row(broken: bool) -> Target:
    def rmse(outputs, y):
        return (outputs - (y if broken else y[:, None])).square().mean().sqrt()

    return Target(mlp(classes=1), regression(column=False), lambda p, y: F.mse_loss(p[:, 0], y), metric=rmse)


@pair("metric-sanity", source=FORUM, where="the outputs are logits")
def logits_taken_for_probabilities(broken: bool) -> Target:
    def accuracy(outputs, y):
        return ((outputs > (0.5 if broken else 0.0)) == y.bool()).float().mean()

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, (x[:, :4] > 0).float()), batch_size=16, shuffle=True)
    return Target(mlp(classes=4), loader, nn.BCEWithLogitsLoss(), metric=accuracy)


@pair("metric-sanity", source="https://stackoverflow.com/q/42800203", where="whatever is predicted")
def argmax_of_a_single_output(broken: bool) -> Target:
    def accuracy(outputs, y):
        guess = outputs.argmax(-1) if broken else (outputs[:, 0] > 0).long()
        return (guess == y).float().mean()

    return Target(
        mlp(classes=1),
        blobs(),
        lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y.float()),
        metric=accuracy,
    )


@pair("metric-sanity", level="warn", source=TAXONOMY, where="own target")
def errors_of_sorted_values(broken: bool) -> Target:
    def error(outputs, y):
        one, other = outputs[:, 0], y[:, 0]
        if broken:
            one, other = one.sort().values, other.sort().values
        return (one - other).abs().mean().item()

    return Target(mlp(classes=1), regression(), nn.MSELoss(), metric=error)


def tags(padded: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 40, (64, 10), generator=generator)
    y = words % 4
    if padded:
        outside = torch.arange(10) >= torch.randint(3, 10, (64, 1), generator=generator)
        words, y = words.masked_fill(outside, 0), y.masked_fill(outside, -100)
    return DataLoader(TensorDataset(words, y), 16, shuffle=True)


class Tagger(nn.Module):
    """Scores for each word ``[batch, length, classes]``."""

    def __init__(self, classes: int, words: int = 40) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(words, 24, padding_idx=0), nn.Linear(24, classes)
        self.body = nn.GRU(24, 24, batch_first=True)

    def forward(self, words):
        return self.head(self.body(self.table(words))[0])


@pair("metric-sanity", source=TOKENS, where="ignored ones count as wrong")
def padding_counted_as_wrong(broken: bool) -> Target:
    def accuracy(outputs, y):
        right = outputs.argmax(-1) == y
        return (right if broken else right[y != -100]).float().mean()

    return Target(
        Tagger(4), tags(padded=True), lambda p, y: F.cross_entropy(p.transpose(1, 2), y), metric=accuracy
    )


@pair("metric-sanity", source=RUN_CLM, where="off by a position")
def next_words_compared_with_these(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(1, 40, (64, 1), generator=generator)
    words = 1 + (start * 3 ** torch.arange(9)) % 41 % 39

    def loss(p, y):
        return F.cross_entropy(p[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def accuracy(outputs, y):
        guess = outputs.argmax(-1)
        return (guess == y).float().mean() if broken else (guess[:, :-1] == y[:, 1:]).float().mean()

    return Target(Tagger(40), DataLoader(TensorDataset(words, words.clone()), 16), loss, metric=accuracy)


@pair("metric-sanity", level="warn", source=TAXONOMY, where="for perfect predictions")
def rounded_logits(broken: bool) -> Target:
    def accuracy(outputs, y):
        guess = outputs[:, 0] if broken else outputs[:, 0].sigmoid()
        return {"accuracy": (guess.round() == y).float().mean()}

    return Target(
        mlp(classes=1),
        blobs(),
        lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y.float()),
        metric=accuracy,
    )
