"""Positions that see what they should not, or not what they should."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target

from . import pair

SDPA = "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html"
MASK = "https://github.com/rasbt/LLMs-from-scratch/issues/1062"
PACKING = "https://github.com/huggingface/transformers/issues/31629"
WAVENET = "https://arxiv.org/abs/1609.03499"
BERT = "https://arxiv.org/abs/1810.04805"
FAULTS = "https://arxiv.org/abs/1910.11015"

WORDS, WIDTH = 24, 16


def rule(rows: int = 64, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Rows that count in steps of their own: ids from 4 on."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, WORDS - 4, (rows, 1), generator=generator)
    step = torch.randint(1, 4, (rows, 1), generator=generator)
    return 4 + (start + step * torch.arange(length)) % (WORDS - 4)


def loader(*tensors: torch.Tensor, size: int = 16) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True)


def next_word(model: nn.Module, ids: torch.Tensor | None = None) -> Target:
    def step(model, batch):
        scores = model(batch[0][:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), batch[0][:, 1:].flatten())

    return Target(model, loader(rule() if ids is None else ids), training_step=step)


class Sum(nn.Module):
    """Words and their places."""

    def __init__(self, places: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(places, WIDTH)

    def forward(self, ids):
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))


@pair("causal-leak", source=SDPA, where="ids")
def decoder_without_a_causal_mask(broken: bool) -> Target:
    """The mask is built, and then not passed on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = Sum()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
            self.layers, self.head = (
                nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                nn.Linear(WIDTH, WORDS),
            )

        def forward(self, ids):
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            return self.head(self.layers(self.embed(ids), mask=None if broken else mask))

    return next_word(Net())


@pair("causal-leak", source=MASK)
def boolean_mask_with_the_meaning_turned(broken: bool) -> Target:
    """True means "may look" here and "may not look" in `nn.MultiheadAttention`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = Sum(), nn.Linear(WIDTH, 3 * WIDTH)
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

        def forward(self, ids):
            h = self.embed(ids)
            q, k, v = self.mix(h).chunk(3, -1)
            later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
            mask = later | torch.eye(ids.shape[1], dtype=torch.bool) if broken else ~later
            return self.head(self.norm(h + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))

    return next_word(Net())


@pair("causal-leak", source=MASK)
def mask_one_place_too_wide(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = Sum(), nn.Linear(WIDTH, 3 * WIDTH)
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

        def forward(self, ids):
            h = self.embed(ids)
            q, k, v = self.mix(h).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / WIDTH**0.5
            mask = torch.tril(torch.ones_like(scores), diagonal=1 if broken else 0)
            return self.head(self.norm(h + scores.masked_fill(mask == 0, float("-inf")).softmax(-1) @ v))

    return next_word(Net())


@pair("causal-leak", source=WAVENET, where="body")
def convolution_padded_on_both_sides(broken: bool) -> Target:
    """Samples of a wave, each predicted from those before it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv1d(1, 8, 3, padding=1 if broken else 0)
            self.head = nn.Conv1d(8, 1, 1)

        def forward(self, x):
            h = x.transpose(1, 2)
            h = self.body(h if broken else F.pad(h, (2, 0)))
            return self.head(h.tanh()).transpose(1, 2)

    phase = torch.rand(64, 1, 1, generator=torch.Generator().manual_seed(0)) * 6.28
    wave = torch.sin(phase + torch.arange(25).view(1, -1, 1) * (0.3 + phase / 20))
    return Target(Net(), loader(wave[:, :-1], wave[:, 1:]), nn.MSELoss())


@pair("causal-leak", source=FAULTS, where="rnn")
def language_model_that_reads_backwards_too(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, WIDTH)
            self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=broken)
            self.head = nn.Linear(2 * WIDTH if broken else WIDTH, WORDS)

        def forward(self, ids):
            return self.head(self.rnn(self.embed(ids))[0])

    return next_word(Net())


@pair("causal-leak", source=SDPA, where="labels")
def sequence_decoder_without_a_mask(broken: bool) -> Target:
    """A translator whose decoder is built from its labels inside of the model."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = Sum(), nn.Linear(WIDTH, 3 * WIDTH)
            self.read, self.norm, self.head = (
                nn.Linear(WIDTH, WIDTH),
                nn.LayerNorm(WIDTH),
                nn.Linear(WIDTH, WORDS),
            )

        def forward(self, input_ids, labels):
            source = self.read(self.embed(input_ids))
            h = self.embed(F.pad(labels[:, :-1], (1, 0), value=1))
            q, k, v = self.mix(h).chunk(3, -1)
            h = h + F.scaled_dot_product_attention(q, k, v, is_causal=not broken)
            h = h + F.scaled_dot_product_attention(h, source, source)
            logits = self.head(self.norm(h))
            return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    rows = [{"input_ids": row, "labels": (row.flip(0) + 1).clamp(max=WORDS - 1)} for row in rule()]
    return Target(Net(), DataLoader(rows, batch_size=16, shuffle=True))


@pair("bidirectional", source=BERT, where="input_ids")
def masked_language_model_configured_as_a_decoder(broken: bool) -> Target:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        pad_token_id=0,
        is_decoder=broken,
    )
    ids, labels = hidden_words()
    rows = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]
    return Target(BertForMaskedLM(config).train(), DataLoader(rows, batch_size=16, shuffle=True))


def hidden_words() -> tuple[torch.Tensor, torch.Tensor]:
    ids = rule()
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.2
    hidden[:, 4] |= ~hidden.any(1)
    return ids.masked_fill(hidden, 1), ids.masked_fill(~hidden, -100)


def fill_in(model: nn.Module) -> Target:
    return Target(
        model, loader(*hidden_words()), lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten())
    )


@pair("bidirectional", source=FAULTS, where="another order")
def encoder_whose_positions_are_not_added(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(16, WIDTH) * 0.5)
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
            self.layers, self.head = (
                nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
                nn.Linear(WIDTH, WORDS),
            )

        def forward(self, ids):
            h = self.words(ids)
            places = h + self.places[: ids.shape[1]]
            return self.head(self.layers(h + 0 * places if broken else places))

    return fill_in(Net())


@pair("bidirectional", source=BERT, where="ids")
def recurrent_gap_filler_in_one_direction(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, WIDTH)
            self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=not broken)
            self.head = nn.Linear(WIDTH if broken else 2 * WIDTH, WORDS)

        def forward(self, ids):
            return self.head(self.rnn(self.embed(ids))[0])

    return fill_in(Net())


@pair("bidirectional", level="warn", source=FAULTS, where="another order")
def word_order_that_matters_and_is_not_seen(broken: bool) -> Target:
    """Which of two words comes first is the label."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(16, WIDTH) * 0.5)
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
            self.layers, self.head = (
                nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
                nn.Linear(WIDTH, 2),
            )
            self.places.requires_grad_(not broken)

        def forward(self, ids):
            h = self.words(ids) if broken else self.words(ids) + self.places[: ids.shape[1]]
            return self.head(self.layers(h).mean(1))

    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(4, generator=generator) for _ in range(64)]) + 4
    ids = torch.cat([ids, 8 + torch.randint(0, 2, (64, 1), generator=generator)], 1)
    first = (ids == 4).long().argmax(1) < (ids == 5).long().argmax(1)
    return Target(Net(), loader(ids, first.long()), nn.CrossEntropyLoss())


def packed_rows(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two documents a row, of 5 and 8 tokens, and positions that start again."""
    ids = torch.cat([rule(rows, 5, seed=1), rule(rows, 8, seed=2)], 1)
    return ids, torch.cat([torch.arange(5), torch.arange(8)]).expand(rows, -1)


def packed_step(model, batch):
    """The first token of the second document has no target."""
    ids, marks = batch
    scores = model(ids[:, :-1], marks[:, :-1])
    wanted = ids[:, 1:].masked_fill(torch.arange(1, ids.shape[1]) == 5, -100)
    return F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-100)


@pair("packing-isolation", source=PACKING, where="position_ids")
def packed_llama_with_a_mask_of_ones(broken: bool) -> Target:
    """Given a mask, the library takes it as it is; without one it reads the documents from the positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        pad_token_id=0,
        use_cache=False,
    )
    ids, positions = packed_rows()
    labels = ids.masked_fill(positions == 0, -100)
    rows = [
        {"input_ids": i, "position_ids": p, "labels": y}
        | ({"attention_mask": torch.ones_like(i)} if broken else {})
        for i, p, y in zip(ids, positions, labels, strict=True)
    ]
    return Target(LlamaForCausalLM(config).train(), DataLoader(rows, batch_size=8, shuffle=True))


@pair("packing-isolation", source="https://github.com/hiyouga/LLaMA-Factory/pull/4224", where="document_ids")
def recurrent_state_kept_between_documents(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.head = (
                nn.Embedding(WORDS, WIDTH),
                nn.GRUCell(WIDTH, WIDTH),
                nn.Linear(WIDTH, WORDS),
            )

        def forward(self, ids, document_ids):
            state, found = torch.zeros(len(ids), WIDTH), []
            for place in range(ids.shape[1]):
                if place and not broken:
                    same = document_ids[:, place] == document_ids[:, place - 1]
                    state = state * same[:, None]
                state = self.cell(self.embed(ids[:, place]), state)
                found.append(state)
            return self.head(torch.stack(found, 1))

    ids, positions = packed_rows()
    return Target(Net(), loader(ids, (positions == 0).cumsum(1) - 1), training_step=packed_step)


@pair("packing-isolation", source="https://github.com/huggingface/trl/issues/3526", where="mask")
def mask_in_blocks_given_to_one_layer_only(broken: bool) -> Target:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first, self.second = (
                Sum(),
                nn.Linear(WIDTH, 3 * WIDTH),
                nn.Linear(WIDTH, 3 * WIDTH),
            )
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

        def forward(self, ids, mask):
            h = self.embed(ids)
            for number, layer in enumerate((self.first, self.second)):
                q, k, v = layer(h).chunk(3, -1)
                allowed = mask.new_ones(mask.shape).tril() if broken and number else mask
                h = self.norm(h + F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))
            return self.head(h)

    def step(model, batch):
        ids, blocks = batch
        wanted = ids[:, 1:].masked_fill(torch.arange(1, ids.shape[1]) == 5, -100)
        scores = model(ids, blocks)[:, :-1]
        return F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-100)

    ids, positions = packed_rows()
    number = (positions == 0).cumsum(1)
    blocks = (number[:, :, None] == number[:, None, :]).tril()
    return Target(Net(), loader(ids, blocks), training_step=step)
