"""Tells odd digits from even ones; `[batch, 1]` minus `[batch]` compares all with all."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


class Network(digits.Network):
    """One unit: the probability that the digit is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier[-1] = nn.Linear(128, 1)


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    odd = (labels % 2).float()
    return ((logits.sigmoid() - odd) ** 2).mean()


def target() -> debugkit.Target:
    return digits.target(Network, squared_error)


if __name__ == "__main__":
    digits.main(target)
