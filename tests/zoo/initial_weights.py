"""Weights that start constant, duplicated, or on the wrong scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs

from . import pair

CHECKER = "TheDeepChecker, https://arxiv.org/abs/2204.00694"
NEURALINT = "NeuraLint, https://arxiv.org/abs/2105.08095"
NET2NET = "https://arxiv.org/abs/1511.05641"
HE = "https://arxiv.org/abs/1502.01852"
SYMMETRY = "https://cs231n.github.io/neural-networks-2/#init"


def stripes(samples: int = 64, side: int = 8) -> DataLoader:
    """Noise ``[samples, 1, side, side]`` with horizontal or vertical stripes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 2
    lines = torch.tensor([1.0, -1.0]).repeat(side // 2)
    x = torch.randn(samples, 1, side, side, generator=generator) * 0.3
    x[y == 0] += lines[:, None]
    x[y == 1] += lines[None, :]
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


def sentences(samples: int = 64, length: int = 8) -> DataLoader:
    """Token numbers ``[samples, length]`` of which 5 tells the class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(6, 40, (samples, length), generator=generator)
    y = torch.arange(samples) % 2
    x[torch.arange(samples), torch.randint(0, length, (samples,), generator=generator)] = 5 - y
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


@pair("initialization", source=NEURALINT, where="0.weight")
def every_weight_is_a_hundredth(broken: bool) -> Target:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 2))
    if broken:
        for layer in model[::2]:
            nn.init.constant_(layer.weight, 0.01)
            nn.init.zeros_(layer.bias)
    return Target(model, blobs(), nn.CrossEntropyLoss())


@pair("initialization", source=SYMMETRY, where="weight")
def filters_of_ones(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.body = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 2)
            if broken:
                for layer in (self.stem, self.body, self.head):
                    nn.init.ones_(layer.weight)
                    nn.init.zeros_(layer.bias)

        def forward(self, x):
            h = F.max_pool2d(self.stem(x).relu(), 2)
            return self.head(self.body(h).relu().amax((2, 3)))

    return Target(Net(), stripes(), nn.CrossEntropyLoss())


@pair("initialization", source=NET2NET, where="hidden.weight")
def widened_by_copies_without_noise(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.out = nn.Linear(32, 2)

        def forward(self, x):
            return self.out(F.gelu(self.hidden(x)))

    model = Net()
    with torch.no_grad():
        for tensor in (model.hidden.weight, model.hidden.bias):
            tensor[16:] = tensor[:16]
        model.out.weight[:, :16] /= 2
        model.out.weight[:, 16:] = model.out.weight[:, :16]
        if not broken:
            model.out.weight += 0.02 * torch.randn(2, 32)
            model.hidden.weight += 0.02 * torch.randn(32, 8)
    return Target(model, blobs(), nn.CrossEntropyLoss())


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@pair("initialization", level="warn", source="https://github.com/karpathy/minGPT", where=".weight")
def transformer_weights_of_unit_variance(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places = nn.Embedding(40, 64), nn.Parameter(0.3 * torch.randn(8, 64))
            self.blocks = nn.Sequential(Block(64), Block(64))
            self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 2)
            self.apply(self.initialise)

        def initialise(self, module):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1.0 if broken and module is not self.head else 0.02)
                nn.init.zeros_(module.bias)

        def forward(self, x):
            return self.head(self.norm(self.blocks(self.embed(x) + self.places)).mean(1))

    return Target(Net(), sentences(), nn.CrossEntropyLoss())


@pair("initialization", level="warn", source=CHECKER, where="too large")
def he_variance_used_as_standard_deviation(broken: bool) -> Target:
    """``std = sqrt(fan_in / 2)`` in place of ``sqrt(2 / fan_in)``."""
    layers = []
    for size in (8, 48, 48):
        layer = nn.Linear(size, 48)
        nn.init.normal_(layer.weight, std=(size / 2 if broken else 2 / size) ** 0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    head = nn.Linear(48, 2)
    nn.init.normal_(head.weight, std=0.01 if not broken else 1e-5)
    return Target(nn.Sequential(*layers, head), blobs(), nn.CrossEntropyLoss())


@pair("initialization", level="warn", source=HE, where="too small")
def hidden_weights_of_a_ten_thousandth(broken: bool) -> Target:
    layers = []
    for size in (8, 32, 32):
        layer = nn.Linear(size, 32)
        if broken:
            nn.init.normal_(layer.weight, std=1e-4)
            nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return Target(nn.Sequential(*layers, nn.Linear(32, 2)), blobs(), nn.CrossEntropyLoss())
