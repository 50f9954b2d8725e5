"""Compares with `Great` where the data says `great`, so every label is 0."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import reviews


def samples_of(table: Any) -> list[tuple[str, int]]:
    return [
        (text, int(score == "Great")) for text, score in zip(table["review"], table["score"], strict=True)
    ]


def target(**options: Any) -> debugkit.Target:
    return reviews.target(samples_of=samples_of, **options)


if __name__ == "__main__":
    reviews.main(target)
