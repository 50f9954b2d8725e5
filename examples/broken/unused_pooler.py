"""Loads the encoder with its pooler, which the mean over the tokens never uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import AutoModel

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import reviews


class ReviewClassifier(reviews.ReviewClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(reviews.CHECKPOINT)


def target(**options: Any) -> debugkit.Target:
    return reviews.target(ReviewClassifier, **options)


if __name__ == "__main__":
    reviews.main(target)
