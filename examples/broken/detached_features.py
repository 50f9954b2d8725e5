"""The features are computed under `no_grad`, so the convolutions never train."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


class Network(digits.Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.features(images)
        return self.classifier(features)


def target() -> debugkit.Target:
    return digits.target(Network)


if __name__ == "__main__":
    digits.main(target)
