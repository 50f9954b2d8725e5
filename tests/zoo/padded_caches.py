"""Caches that make generation differ from what training taught."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from debugkit import Target

from . import pair

GITHUB = "https://github.com"
TOKENS = 24
Cache = tuple[torch.Tensor, torch.Tensor]


def counting() -> DataLoader[Any]:
    """Batches ``[16, 14]`` of ids that count on by one to three."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, TOKENS, (96, 1), generator=generator)
    rows: Any = (start + torch.arange(14) * torch.randint(1, 4, (96, 1), generator=generator)) % TOKENS
    return DataLoader(rows, batch_size=16, shuffle=True)


def named(rows: torch.Tensor) -> DataLoader[Any]:
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    return DataLoader(data, batch_size=16, shuffle=True)


def next_token(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    scores = model(ids[:, :-1])[0]
    return F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())


class Block(nn.Module):
    """One layer of attention over what was read so far; subclasses say how."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 32)
        self.mix = nn.Linear(32, 96, bias=False)
        self.out = nn.Linear(32, TOKENS)
        self.broken = broken

    def attend(self, hidden: torch.Tensor, past: Cache | None) -> tuple[torch.Tensor, Cache]:
        raise NotImplementedError

    def forward(self, ids: torch.Tensor, past_kv: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        hidden = self.tokens(ids)
        mixed, cache = self.attend(hidden, past_kv)
        return self.out(hidden + mixed), cache


def joined(past: Cache | None, key: torch.Tensor, value: torch.Tensor) -> Cache:
    return (key, value) if past is None else (torch.cat([past[0], key], 1), torch.cat([past[1], value], 1))


class CausalFlag(Block):
    """Attention with `is_causal=True`, whose triangle begins at the upper left."""

    def attend(self, hidden: torch.Tensor, past: Cache | None) -> tuple[torch.Tensor, Cache]:
        query, key, value = self.mix(hidden).chunk(3, -1)
        key, value = joined(past, key, value)
        causal = past is None or self.broken
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal), (key, value)


@pair("cache-parity", source=f"{GITHUB}/pytorch/pytorch/issues/103082", where="the model's own cache")
def causal_flag_with_one_query_and_many_keys(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(CausalFlag(broken), counting(), training_step=next_token)


class Rotating(Block):
    """Keys that are rotated by their positions before they are stored, or after, with those of the new tokens."""

    def attend(self, hidden: torch.Tensor, past: Cache | None) -> tuple[torch.Tensor, Cache]:
        query, key, value = self.mix(hidden).chunk(3, -1)
        before = 0 if past is None else past[0].shape[1]
        query = rotated(query, before)
        new = hidden.shape[1]
        if self.broken:
            stored = joined(past, key, value)
            key, value = rotated(stored[0], before), stored[1]
        else:
            key, value = stored = joined(past, rotated(key, before), value)
        seen = torch.ones(new, key.shape[1], dtype=torch.bool).tril(before)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen), stored


def rotated(states: torch.Tensor, start: int) -> torch.Tensor:
    """Rotary embedding of positions from ``start`` on."""
    half = states.shape[-1] // 2
    frequency = 0.1 ** (torch.arange(half) / half)
    angle = (start + torch.arange(states.shape[1])).unsqueeze(1) * frequency
    one, other = states.chunk(2, -1)
    return torch.cat([one * angle.cos() - other * angle.sin(), one * angle.sin() + other * angle.cos()], -1)


@pair("cache-parity", source=f"{GITHUB}/huggingface/transformers/pull/22233", where="the model's own cache")
def keys_rotated_by_the_positions_of_the_new_tokens(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Rotating(broken), counting(), training_step=next_token)


class Distances(Block):
    """Attention with a learned bias for each distance, which a cached step takes for 0."""

    def __init__(self, broken: bool) -> None:
        super().__init__(broken)
        self.bias = nn.Parameter(torch.randn(32))

    def attend(self, hidden: torch.Tensor, past: Cache | None) -> tuple[torch.Tensor, Cache]:
        query, key, value = self.mix(hidden).chunk(3, -1)
        key, value = joined(past, key, value)
        new, all_ = query.shape[1], key.shape[1]
        start = 0 if self.broken else all_ - new
        distance = (start + torch.arange(new)).unsqueeze(1) - torch.arange(all_)
        scores = query @ key.mT / 32**0.5 + self.bias[distance.abs()]
        hidden_keys = ~torch.ones(new, all_, dtype=torch.bool).tril(all_ - new)
        return scores.masked_fill(hidden_keys, -torch.inf).softmax(-1) @ value, (key, value)


@pair("cache-parity", source=f"{GITHUB}/huggingface/transformers/issues/19045", where="the model's own cache")
def relative_bias_of_a_cached_step(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Distances(broken), counting(), training_step=next_token)


class Numbered(GPT2LMHeadModel):
    """GPT-2 that numbers the positions of what it is given, with or without those before."""

    counts_on = True

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        cache = options.get("cache", options.get("past_key_values"))
        before = cache.get_seq_length() if cache is not None and self.counts_on else 0
        options["position_ids"] = before + torch.arange(input_ids.shape[1]).unsqueeze(0)
        return super().forward(input_ids, **options)


@pair("cache-parity", source=f"{GITHUB}/huggingface/transformers/issues/21080", where="`generate`")
def gpt2_that_counts_from_zero_again(broken: bool) -> Target:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = Numbered(config).train()
    model.counts_on = not broken
    return Target(model, named(next(iter(counting())).repeat(4, 1)))


class Scaled(LlamaForCausalLM):
    """Llama whose generation leaves out the scale of its scores for the first tokens or not."""

    shifted = False

    def prepare_inputs_for_generation(
        self, input_ids: Any, attention_mask: Any = None, **options: Any
    ) -> Any:
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **options)
        length = inputs["input_ids"].shape[1]
        if self.shifted and length > 1:
            inputs["position_ids"] = 3 * torch.arange(length).unsqueeze(0)
        return inputs


@pair("cache-parity", source=f"{GITHUB}/huggingface/transformers/issues/29149", where="prepare_inputs")
def generation_with_positions_of_its_own(broken: bool) -> Target:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    model = Scaled(config).train()
    model.shifted = broken
    return Target(model, named(next(iter(counting())).repeat(4, 1)))
