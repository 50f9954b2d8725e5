"""All weights start at the same value, so all units of a layer stay the same."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

import debugkit

sys.path.insert(0, str(Path(__file__).parents[1]))
import digits


class Network(digits.Network):
    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.constant_(module.weight, 0.01)


def target() -> debugkit.Target:
    return digits.target(Network)


if __name__ == "__main__":
    digits.main(target)
