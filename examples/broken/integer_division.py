"""The network scales bytes by an integer division, which leaves zeros: every image looks the same."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


class Network(digits.Network):
    """Takes pixels for bytes in 0..255, which they are not."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (images * 16).byte() // 255
        return super().forward(pixels.float())


def target() -> debugkit.Target:
    return digits.target(Network)


if __name__ == "__main__":
    digits.main(target)
