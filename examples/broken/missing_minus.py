"""Minimises the log-likelihood instead of its negative."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


def log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).mean()


def target() -> debugkit.Target:
    return digits.target(loss_fn=log_likelihood)


if __name__ == "__main__":
    digits.main(target)
