"""The network ends in a softmax, and the loss applies its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


class Network(digits.Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).softmax(dim=1)


def target() -> debugkit.Target:
    return digits.target(Network)


if __name__ == "__main__":
    digits.main(target)
