"""Weights that should be one tensor and are two, or the reverse."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.testing import blobs

from . import pair

TYING = "https://arxiv.org/abs/1608.05859"
PARAMETERS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.parameter.Parameter.html"
STACKS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.ModuleList.html"


def repeating(vocabulary: int = 40, length: int = 8) -> DataLoader[Any]:
    """Token ids ``[64, length]`` of two tokens that take turns."""
    pairs = torch.randint(3, vocabulary, (64, 2), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(pairs.repeat(1, length // 2)), batch_size=16, shuffle=True)


def next_token(model: nn.Module, batch: Any) -> torch.Tensor:
    ids = batch[0]
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


class Recurrent(nn.Module):
    """A GRU language model."""

    def __init__(self, vocabulary: int = 40, width: int = 24) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.tokens(ids))[0])


def gpt2(**options: Any) -> Any:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    return transformers.GPT2LMHeadModel(config).train()


def writing(model: nn.Module) -> Target:
    ids = next(iter(DataLoader(repeating().dataset, batch_size=64)))[0]
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    return Target(model, DataLoader(rows, batch_size=16, shuffle=True))  # type: ignore[arg-type]


@pair(
    "tied-weights", source="https://github.com/huggingface/transformers/issues/1730", where="lm_head.weight"
)
def head_replaced_after_tying(broken: bool) -> Target:
    model = gpt2()
    if broken:
        model.lm_head = copy.deepcopy(model.lm_head)
    return writing(model)


@pair("tied-weights", source=TYING, where="lm_head.weight")
def table_grown_by_hand(broken: bool) -> Target:
    model = gpt2()
    if broken:
        grown = nn.Embedding(40, 24)
        grown.weight.data.copy_(model.transformer.wte.weight.data)
        grown.weight.data[-2:] += 0.01
        model.transformer.wte = grown
    return writing(model)


@pair("tied-weights", level="warn", source=TYING, where="lm_head.weight")
def tying_asked_for_after_the_model_was_built(broken: bool) -> Target:
    model = gpt2(tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    if not broken:
        model.tie_weights()
    return writing(model)


@pair("tied-weights", source=PARAMETERS, where="out.weight")
def tied_by_data_not_by_parameter(broken: bool) -> Target:
    model = Recurrent()
    if broken:
        model.out.weight.data = model.tokens.weight.data
    else:
        model.out.weight = model.tokens.weight
    return Target(model, repeating(), training_step=next_token)


@pair(
    "tied-weights",
    level="warn",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict",
    where="out.weight",
)
def tie_broken_by_loading_with_assign(broken: bool) -> Target:
    model = Recurrent()
    model.out.weight = model.tokens.weight
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(saved, assign=broken)
    return Target(model, repeating(), training_step=next_token)


class Stack(nn.Module):
    """Residual blocks, one after another."""

    def __init__(self, blocks: nn.ModuleList, width: int = 16) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(8, width), blocks, nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def block(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))


@pair("tied-weights", level="warn", source=STACKS, where="blocks")
def one_block_six_times(broken: bool) -> Target:
    blocks = [block()] * 6 if broken else [block() for _ in range(6)]
    return Target(Stack(nn.ModuleList(blocks)), blobs(), nn.CrossEntropyLoss())


@pair("tied-weights", level="warn", source="https://docs.python.org/3/library/copy.html", where="blocks")
def shallow_copies_of_a_block(broken: bool) -> Target:
    first = block()
    make = copy.copy if broken else copy.deepcopy
    return Target(Stack(nn.ModuleList(make(first) for _ in range(4))), blobs(), nn.CrossEntropyLoss())


@pair("tied-weights", level="warn", source=STACKS, where="1")
def multiplied_list_in_a_sequence(broken: bool) -> Target:
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8) + (torch.arange(64) % 2).view(-1, 1, 1, 1)

    def stage() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    stages = [stage()] * 3 if broken else [stage() for _ in range(3)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(*stages), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    loader = DataLoader(TensorDataset(images, torch.arange(64) % 2), batch_size=16, shuffle=True)
    return Target(model, loader, nn.CrossEntropyLoss())
