"""Leaves out `[CLS]` and `[SEP]`, which the encoder was trained with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import reviews


class Collator(reviews.Collator):
    def __call__(self, samples: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        texts, labels = zip(*samples, strict=True)
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=True,
            truncation=True,
            max_length=reviews.MAX_LENGTH,
            return_tensors="pt",
        )
        return {**batch, "labels": torch.tensor(labels)}


def target(**options: Any) -> debugkit.Target:
    return reviews.target(collator=Collator, **options)


if __name__ == "__main__":
    reviews.main(target)
