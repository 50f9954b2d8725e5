"""Whether the vectors of an embedding belong to the tokens of a tokenizer.

Tokens that are one word but for case, the space before, or a plural s get vectors that are alike in any model that
was trained on text. Under another tokenizer the same rows are those of arbitrary tokens.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

FEWEST_PAIRS = 200
FEWEST_ROWS = 2000

_MOST_PAIRS = 2000
_MOST_ROWS = 2**14
_PROBED = 256
_COMMON = 8
_SHORTEST = 3
_MARK = re.compile(r"^(?:Ġ|▁|##)+")


@dataclass(frozen=True)
class Kinship:
    """How alike the vectors of kindred tokens are.

    Attributes:
        pairs: how many pairs of kindred tokens were compared.
        auc: how often a pair is more alike than two arbitrary tokens; 0.5 is chance.
        error: its standard error.
        clusters: how much closer a vector is to its nearest one than among independent vectors: 0 where they are
            independent, 1 where they come in equal pairs. Training on much text brings it to 0.3.
    """

    pairs: int
    auc: float
    error: float
    clusters: float


def kindred(vocabulary: Mapping[str, int], rows: int) -> list[tuple[int, int]]:
    """Pairs of ids whose tokens are one word in two forms, drawn at random."""
    groups: dict[str, list[int]] = {}
    for token, index in vocabulary.items():
        word = _MARK.sub("", token).lower()
        if len(word) >= _SHORTEST and word.isascii() and word.isalpha() and 0 <= index < rows:
            groups.setdefault(word, []).append(index)
    pairs = [(ids[0], other) for ids in groups.values() for other in ids[1:]]
    pairs += [
        (ids[0], groups[word[:-1]][0])
        for word, ids in groups.items()
        if word.endswith("s") and word[:-1] in groups
    ]
    return random.Random(0).sample(sorted(pairs), min(_MOST_PAIRS, len(pairs)))


@torch.no_grad()
def kinship(weight: torch.Tensor, vocabulary: Mapping[str, int]) -> Kinship | None:
    """Compare the vectors of kindred tokens with those of arbitrary ones.

    Args:
        weight: ``[ids, width]``.
        vocabulary: id by token.

    Returns:
        ``None`` where there are too few pairs or rows to tell.
    """
    pairs = kindred(vocabulary, len(weight))
    if len(pairs) < FEWEST_PAIRS or len(weight) < FEWEST_ROWS or weight.shape[1] < 4 * _COMMON:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(weight), generator=generator)[:_MOST_ROWS].tolist()
    sample = weight.detach()[torch.tensor(drawn, device=weight.device)].float().cpu()
    mean = sample.mean(0)
    first, second = (
        _directions(weight.detach()[torch.tensor([p[side] for p in pairs], device=weight.device)], mean)
        for side in (0, 1)
    )
    own = (first * second).sum(1)
    other = (first * second[torch.randperm(len(pairs), generator=generator)]).sum(1)
    auc = float((own[:, None] > other[None]).double().mean())
    error = math.sqrt((auc * (1 - auc) + 1 / 12) / len(pairs))
    return Kinship(len(pairs), auc, error, _clusters(sample - mean))


def _directions(vectors: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    centred = vectors.float().cpu() - mean
    directions: torch.Tensor = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return directions


def _clusters(vectors: torch.Tensor) -> float:
    """Similarity of nearest vectors without their most common directions, from that of independent ones (0) to 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, common = torch.svd_lowrank(vectors, q=_COMMON)
    rest = _directions(vectors - (vectors @ common) @ common.T, torch.zeros(1))
    alike = rest[:_PROBED] @ rest.T
    alike.fill_diagonal_(-1)
    expected = math.sqrt(2 * math.log(len(rest)) / (rest.shape[1] - _COMMON))
    return (float(alike.max(1).values.median()) - expected) / max(1 - expected, 1e-9)
