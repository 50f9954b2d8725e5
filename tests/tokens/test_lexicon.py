"""Kindred tokens: their pairs, and whether their vectors are alike."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from debugkit.tokens.lexicon import kindred, kinship

WORDS = ["".join(letters) for letters in itertools.product("bdfgklmn", "aeiou", "bdfgklmn", "ao")]
FORMS = [form for word in WORDS for form in (word, f"Ġ{word}", f"{word}s", word.upper())]


def vocabulary(seed: int = 0) -> dict[str, int]:
    order = random.Random(seed).sample(FORMS, len(FORMS))
    return {token: index for index, token in enumerate(order)}


def trained(tokens: dict[str, int], noise: float = 0.4, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    meaning = {word: torch.randn(width, generator=generator) for word in WORDS}
    table = torch.zeros(len(tokens), width)
    for token, index in tokens.items():
        word = token.lstrip("Ġ").lower().removesuffix("s")
        table[index] = meaning[word] + noise * torch.randn(width, generator=generator)
    return table + torch.randn(width, generator=generator)


def test_pairs_are_forms_of_one_word() -> None:
    tokens = {"Ġtree": 0, "Tree": 1, "trees": 2, "##tree": 3, "12": 4, "ab": 5, "naïve": 6, "rock": 9}
    assert sorted(kindred(tokens, 9)) == [(0, 1), (0, 3), (2, 0)]


def test_own_vocabulary_and_another() -> None:
    tokens = vocabulary()
    own = kinship(trained(tokens), tokens)
    other = kinship(trained(tokens), vocabulary(seed=1))
    assert own is not None
    assert other is not None
    assert own.auc > 0.95
    assert abs(other.auc - 0.5) < 3 * other.error
    assert own.clusters > 0.3


def test_independent_vectors_have_no_clusters() -> None:
    tokens = vocabulary()
    found = kinship(torch.randn(len(tokens), 64, generator=torch.Generator().manual_seed(0)), tokens)
    assert found is not None
    assert found.clusters < 0.1


@pytest.mark.parametrize("rows", [100, 1999])
def test_small_tables_are_not_judged(rows: int) -> None:
    tokens = dict(itertools.islice(vocabulary().items(), rows))
    assert kinship(trained(tokens), tokens) is None
