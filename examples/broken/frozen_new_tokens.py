"""Adds a token for the product and freezes the embeddings, so its random row never trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import reviews

PRODUCT = "[PRODUCT]"


def samples_of(table: Any) -> list[tuple[str, int]]:
    named = (
        f"{product} {PRODUCT} {text}" for product, text in zip(table["product"], table["review"], strict=True)
    )
    return [(text, label) for text, (_, label) in zip(named, reviews.samples_of(table), strict=True)]


class Collator(reviews.Collator):
    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": [PRODUCT]})


class ReviewClassifier(reviews.ReviewClassifier):
    def __init__(self) -> None:
        super().__init__()
        embeddings = self.encoder.resize_token_embeddings(self.encoder.config.vocab_size + 1)
        embeddings.requires_grad_(False)


def target(**options: Any) -> debugkit.Target:
    return reviews.target(ReviewClassifier, Collator, samples_of, **options)


if __name__ == "__main__":
    reviews.main(target)
