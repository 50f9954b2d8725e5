"""Attention that looks at padding although it is marked, or at one position only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target

from . import pair
from .padded_rows import FORUM, GITHUB, TORCH, with_mask
from .tokens import WORDS


class Reader(nn.Module):
    """Two logits from one layer of attention over words; gives its weights too."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, 32)
        self.mix = nn.Linear(32, 96)
        self.out = nn.Linear(32, 2)
        self.how = how

    def scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query @ key.mT / query.shape[-1] ** 0.5

    def masked(self, scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        if self.how == "multiplied":
            return scores * seen
        if self.how == "weak":
            return scores - 8.0 * ~seen
        return scores.masked_fill(~seen, -torch.inf)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.words(tokens)
        heads = self.mix(hidden).unflatten(-1, (2, 48)).transpose(1, 2)
        query, key, value = heads.chunk(3, -1)
        weights = self.masked(self.scores(query, key), mask[:, None, None]).softmax(-1)
        hidden = hidden + (weights @ value).transpose(1, 2).flatten(2)
        real = mask.unsqueeze(-1)
        return self.out((hidden * real).sum(1) / real.sum(1)), weights


def first(model: nn.Module, batch: Any) -> torch.Tensor:
    (tokens, mask), labels = batch
    return F.cross_entropy(model(tokens, mask)[0], labels)


@pair("attention-patterns", source=f"{FORUM}/t/apply-mask-softmax/14212", where="although `mask` marks them")
def scores_multiplied_by_the_mask(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Reader("multiplied" if broken else ""), with_mask(), training_step=first)


@pair(
    "attention-patterns",
    source=f"{GITHUB}/huggingface/transformers/issues/17789",
    where="although `mask` marks them",
)
def scores_of_padding_lowered_a_little(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Reader("weak" if broken else ""), with_mask(), training_step=first)


class Observed(nn.Module):
    """torch's own attention, whose mask is added where it holds numbers."""

    def __init__(self, as_numbers: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.out = nn.Linear(32, 2)
        self.as_numbers = as_numbers

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.words(tokens)
        left_out = (~mask).float().neg() if self.as_numbers else ~mask
        mixed, _ = self.attention(hidden, hidden, hidden, key_padding_mask=left_out)
        real = mask.unsqueeze(-1)
        return self.out(((hidden + mixed) * real).sum(1) / real.sum(1))


@pair("attention-patterns", source=f"{TORCH}/torch.nn.MultiheadAttention.html", where="attention")
def padding_mask_of_numbers_that_are_added(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Observed(as_numbers=broken), with_mask(), nn.CrossEntropyLoss())


class Sharp(Reader):
    """The same with scores that are multiplied by the square of the temperature instead of divided."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.temperature = 80.0 if broken else 1.0

    def scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return super().scores(query, key) * self.temperature**2


@pair("attention-patterns", level="warn", source="https://arxiv.org/abs/2303.06296", where="attention heads")
def scores_times_the_temperature(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Sharp(broken), with_mask(), training_step=first)
