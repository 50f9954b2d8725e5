"""Steps that are other steps in another precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs, mlp, settings

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
        """Counts on from 300 along a sequence ``[batch, 40]`` of zeros and ones."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = x.float() * self.scale.float() if not broken else x * self.scale
            total = torch.full_like(steps[:, 0], 300)
            for step in steps.unbind(1):
                total = total + step
            return self.head(((total - 320) / 5).to(self.scale.dtype)[:, None])

    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(10, 31, (32,), generator=generator)
    x = (torch.rand(32, 40, generator=generator).argsort(1) < counts[:, None]).to(torch.bfloat16)
    loader: DataLoader[Any] = DataLoader(TensorDataset(x, (counts > 20).long()), batch_size=8, shuffle=True)
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


class Attending(nn.Module):
    """Token ids ``[batch, 8]`` to classes, with a mask over the pads that one implementation has to see."""

    def __init__(self, *, forgets_mask: bool) -> None:
        super().__init__()
        self.implementation, self.forgets_mask = "sdpa", forgets_mask
        self.tokens, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 2)

    def set_attn_implementation(self, name: str) -> None:
        self.implementation = name

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.tokens(ids)).chunk(3, -1)
        seen = (ids != 0)[:, None, :]
        if self.implementation == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        else:
            scores = query @ key.mT * 8**-0.5
            if not self.forgets_mask:
                scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
            mixed = scores.softmax(-1) @ value
        return self.head(mixed[:, 0])


@pair(
    "compile-parity",
    source="https://huggingface.co/docs/transformers/attention_interface",
    where="eager-attention",
)
@settings("other-backend.name=eager-attention")
def mask_that_one_attention_forgets(broken: bool) -> Target:
    torch.manual_seed(0)
    ids = torch.randint(3, 20, (64, 8), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(8) >= (torch.arange(64) % 5 + 3)[:, None]] = 0
    loader: DataLoader[Any] = DataLoader(TensorDataset(ids, ids[:, 1] % 2), batch_size=16, shuffle=True)
    return Target(Attending(forgets_mask=broken), loader, nn.CrossEntropyLoss())


@pair("compile-parity", source="https://arxiv.org/abs/2408.00118", where="eager-attention")
@settings("other-backend.name=eager-attention")
def soft_cap_that_the_fused_attention_lacks(broken: bool) -> Target:
    class Capped(nn.Module):
        """Rows ``[batch, 8]`` as four tokens; scores are capped at 2."""

        def __init__(self) -> None:
            super().__init__()
            self.implementation = "sdpa"
            self.mix, self.head = nn.Linear(2, 24), nn.Linear(32, 2)
            nn.init.normal_(self.mix.weight, std=2.0)

        def set_attn_implementation(self, name: str) -> None:
            self.implementation = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key, value = self.mix(x.view(-1, 4, 2)).chunk(3, -1)
            if self.implementation == "sdpa" and broken:
                mixed = F.scaled_dot_product_attention(query, key, value)
            else:
                mixed = (2 * (query @ key.mT * 8**-0.5 / 2).tanh()).softmax(-1) @ value
            return self.head(mixed.flatten(1))

    torch.manual_seed(0)
    return Target(Capped(), blobs(), nn.CrossEntropyLoss())


@pair(
    "compile-parity",
    source="https://docs.pytorch.org/docs/stable/generated/torch.compiler.is_compiling.html",
    where="eager",
)
@settings("other-backend.name=eager")
def shortcut_while_compiling(broken: bool) -> Target:
    class Clipped(nn.Module):
        """A network with clipped features, which a branch leaves out of the compiled graph."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            if not (broken and torch.compiler.is_compiling()):
                h = h.clamp(-1, 1) + 0.1 * h
            return self.last(h)

    torch.manual_seed(0)
    return Target(Clipped(), blobs(), nn.CrossEntropyLoss())
