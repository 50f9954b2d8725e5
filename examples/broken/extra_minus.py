"""Takes the cross-entropy for a log-likelihood and flips its sign: training makes it as large as it can."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


def negative(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(logits, labels)


def target() -> debugkit.Target:
    return digits.target(loss_fn=negative)


if __name__ == "__main__":
    digits.main(target)
