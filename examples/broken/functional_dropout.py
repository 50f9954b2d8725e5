"""`F.dropout` without `training=self.training` also drops when the network is evaluated."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


class Network(digits.Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.dropout(self.features(images), p=0.3))


def target() -> debugkit.Target:
    return digits.target(Network)


if __name__ == "__main__":
    digits.main(target)
