"""Steps that are other steps in another precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp

from . import pair

AMP = "https://docs.pytorch.org/docs/stable/amp.html"
MIXED = "https://arxiv.org/abs/1710.03740"


@pair("precision-parity", source="https://github.com/huggingface/transformers/issues/9295", where="wide")
def feed_forward_beyond_half_precision(broken: bool) -> Target:
    class Block(nn.Module):
        """A gated feed-forward layer as T5 has it, behind a norm."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate, self.wide = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)
            with torch.no_grad():
                self.wide.weight.mul_(3e5 if broken else 1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.wide(self.up(x) * self.gate(x))))

    torch.manual_seed(0)
    return Target(Block(), blobs(), nn.CrossEntropyLoss(), precision="fp16")


@pair("precision-parity", source=MIXED, where="body")
def epsilon_that_half_precision_rounds_to_zero(broken: bool) -> Target:
    class Standardised(nn.Module):
        """Hidden units standardised by hand in groups of four, of which one is always zero."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(8, 16), mlp(16)
            nn.init.constant_(self.first.bias[8:12].data, -100.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).relu().view(-1, 4, 4)
            h = h if broken else h.float()
            off = h - h.mean(-1, keepdim=True)
            return self.body((off / ((off * off).mean(-1, keepdim=True) + 1e-8).sqrt()).flatten(1))

    torch.manual_seed(0)
    return Target(Standardised(), blobs(), nn.CrossEntropyLoss(), precision="fp16")


@pair("precision-parity", source="https://github.com/huggingface/transformers/pull/25740", where="bfloat16")
def rotation_angles_in_bfloat16(broken: bool) -> Target:
    class Rotary(nn.Module):
        """Token ids ``[batch, 8]`` late in a document, turned by their position, to the first token's class."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(20, 16)
            self.frequencies = nn.Buffer(100 ** (-torch.arange(8) / 8))
            self.body = nn.Linear(16 * 8, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            places = torch.arange(3000, 3000 + ids.shape[1], device=ids.device).float()
            with nullcontext() if broken else torch.autocast(ids.device.type, enabled=False):
                angles = (places[:, None] @ self.frequencies[None]).float()
            a, b = self.tokens(ids).chunk(2, -1)
            turned = [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()]
            return self.body(torch.cat(turned, -1).flatten(1))

    torch.manual_seed(0)
    ids = torch.randint(0, 20, (64, 8), generator=torch.Generator().manual_seed(0))
    loader: DataLoader[Any] = DataLoader(TensorDataset(ids, ids[:, 0] % 2), batch_size=16, shuffle=True)
    return Target(Rotary(), loader, nn.CrossEntropyLoss(), precision="bf16")


@pair("precision-parity", source=AMP, where="bfloat16")
def running_sum_that_stops_growing(broken: bool) -> Target:
    class Counting(nn.Module):
        """Counts along a sequence ``[batch, 600]`` of zeros and ones, and compares with a learned number."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = x.float() * self.scale.float() if not broken else x * self.scale
            total = torch.zeros_like(steps[:, 0])
            for step in steps.unbind(1):
                total = total + step
            return self.head(((total - 300) / 20).to(self.scale.dtype)[:, None])

    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(270, 330, (32,), generator=generator)
    x = (torch.rand(32, 600, generator=generator).argsort(1) < counts[:, None]).to(torch.bfloat16)
    loader: DataLoader[Any] = DataLoader(TensorDataset(x, (counts > 300).long()), batch_size=8, shuffle=True)
    torch.manual_seed(0)
    return Target(Counting().bfloat16(), loader, nn.CrossEntropyLoss())


@pair("precision-parity", level="warn", source=MIXED, where="0")
def inputs_in_their_raw_units(broken: bool) -> Target:
    x, y = next(iter(DataLoader(blobs().dataset, batch_size=64)))
    loader: DataLoader[Any] = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), mlp(16))
    if broken:
        with torch.no_grad():
            model[0].weight.mul_(1e4)
    return Target(model, loader, F.cross_entropy, precision="fp16")
