"""Classifiers that read their result from the wrong position of a row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaModel

from debugkit import Target
from debugkit.testing import word_tokenizer

from . import pair
from .padded_rows import FORUM, GITHUB, Reviews, classify, with_lengths
from .tokens import TINY, WORDS, collator, encoded, loader, stories


class LastOutput(Reviews):
    """The same from the outputs of the LSTM, at one position."""

    def __init__(self, place: str) -> None:
        super().__init__(packs=False)
        self.place = place

    def forward(self, text: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.words(text))
        if self.place == "last":
            return self.out(states[:, -1])
        places = lengths if self.place == "behind" else lengths - 1
        places = places.clamp(max=text.shape[1] - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
        return self.out(states.gather(1, places).squeeze(1))


@pair(
    "pooled-token", source=f"{FORUM}/t/get-last-output-of-lstm-with-padding/89167", where="which is padding"
)
def last_output_of_a_padded_batch(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(LastOutput("last" if broken else "end"), with_lengths(), nn.CrossEntropyLoss())


@pair("pooled-token", source=f"{FORUM}/t/gather-last-relevant-output-of-rnn/10066", where="which is padding")
def index_of_the_last_word_off_by_one(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(LastOutput("behind" if broken else "end"), with_lengths(), nn.CrossEntropyLoss())


class Judge(nn.Module):
    """Two logits from one hidden state of a decoder."""

    def __init__(self, rows: int, first: bool) -> None:
        super().__init__()
        config = LlamaConfig(vocab_size=rows, max_position_embeddings=64, num_key_value_heads=2, **TINY)
        self.decoder = LlamaModel(config)
        self.score = nn.Linear(TINY["hidden_size"], 2)
        self.first = first

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder(input_ids, attention_mask=attention_mask).last_hidden_state
        if self.first:
            return self.score(hidden[:, 0])
        return self.score(hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1])


@pair("pooled-token", source=f"{GITHUB}/huggingface/transformers/issues/30004", where="tokens come after it")
def decoder_pooled_like_an_encoder(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer, drop=("token_type_ids",)))
    torch.manual_seed(0)
    return Target(Judge(len(tokenizer), first=broken), data, training_step=classify, tokenizer=tokenizer)


def gpt2(rows: int, pad: int, end: int) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=rows,
            n_positions=64,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=2,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )


def own_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"])


@pair(
    "pooled-token", source=f"{GITHUB}/huggingface/transformers/issues/35909", where="takes id 1 for padding"
)
def decoder_that_knows_another_pad_id(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer, drop=("token_type_ids",)))
    model = gpt2(len(tokenizer), pad=1 if broken else tokenizer.pad_token_id, end=3)
    return Target(model, data, training_step=own_loss)


@pair(
    "pooled-token",
    level="warn",
    source=f"{GITHUB}/huggingface/transformers/issues/35352",
    where="taken for padding",
)
def end_of_text_taken_for_padding(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    if broken:
        tokenizer.pad_token = tokenizer.sep_token
    data = loader(encoded(tokenizer, stories()), collator(tokenizer, drop=("token_type_ids",)))
    model = gpt2(len(tokenizer), pad=tokenizer.pad_token_id, end=3)
    return Target(model, data, training_step=own_loss)
