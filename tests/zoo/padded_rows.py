"""Mistakes that let padding into what a model says of a row."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from debugkit import Target
from debugkit.testing import word_tokenizer

from . import pair
from .tokens import TINY, WORDS, collator, encoded, loader, stories

FORUM = "https://discuss.pytorch.org"
GITHUB = "https://github.com"
TORCH = "https://docs.pytorch.org/docs/stable/generated"


class Sentences(nn.Module):
    """A sentence encoder: the mean of BERT's last hidden states, and two logits."""

    def __init__(self, rows: int, masked: bool) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(vocab_size=rows, max_position_embeddings=64, **TINY), add_pooling_layer=False
        )
        self.classifier = nn.Linear(TINY["hidden_size"], 2)
        self.masked = masked

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        if self.masked:
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return self.classifier((hidden * weights).sum(1) / weights.sum(1))
        return self.classifier(hidden.mean(1))


def classify(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


@pair(
    "padding-invariance",
    source=f"{GITHUB}/UKPLab/sentence-transformers/issues/46",
    where="after `bert`",
)
def sentence_vector_as_plain_mean(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer, drop=("token_type_ids",)))
    torch.manual_seed(0)
    model = Sentences(len(tokenizer), masked=not broken)
    return Target(model, data, training_step=classify, tokenizer=tokenizer)


class Reviews(nn.Module):
    """Two logits from the last state of an LSTM."""

    def __init__(self, packs: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 24, batch_first=True)
        self.out = nn.Linear(24, 2)
        self.packs = packs

    def forward(self, text: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        vectors: Any = self.words(text)
        if self.packs:
            vectors = pack_padded_sequence(vectors, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(vectors)
        return self.out(last[-1])


def with_lengths(shortest: int = 5) -> DataLoader[Any]:
    """Batches ``((ids, lengths), labels)`` padded with 0."""
    tokenizer = word_tokenizer(WORDS)

    def collate(rows: list[dict[str, Any]]) -> Any:
        texts = [torch.tensor(row["input_ids"]) for row in rows]
        lengths = torch.tensor([len(text) for text in texts])
        labels = torch.tensor([row["labels"] for row in rows])
        return (pad_sequence(texts, batch_first=True), lengths), labels

    return loader(encoded(tokenizer, stories(shortest=shortest)), collate)


@pair("padding-invariance", source=f"{TORCH}/torch.nn.utils.rnn.pack_padded_sequence.html", where="lstm")
def last_state_of_an_lstm_that_reads_padding(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Reviews(packs=not broken), with_lengths(), nn.CrossEntropyLoss())


class Tagless(nn.Module):
    """A transformer over words that averages the right places, with attention over all of them."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(32, 2)
        self.masks = masks

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(self.words(tokens), src_key_padding_mask=~mask if self.masks else None)
        hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.out(hidden.sum(1) / mask.sum(1, keepdim=True))


def with_mask() -> DataLoader[Any]:
    """Batches ``((ids, mask), labels)`` padded with 0."""
    tokenizer = word_tokenizer(WORDS)

    def collate(rows: list[dict[str, Any]]) -> Any:
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
        return (ids, ids != 0), torch.tensor([row["labels"] for row in rows])

    return loader(encoded(tokenizer, stories()), collate)


@pair(
    "padding-invariance",
    source=f"{FORUM}/t/how-to-add-padding-mask-to-nn-transformerencoder-module/63390",
    where="self_attn",
)
def encoder_layers_without_their_padding_mask(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Tagless(masks=not broken), with_mask(), nn.CrossEntropyLoss())


class Strongest(nn.Module):
    """The largest log-probability of any word, with padding set to 0 or out of the way."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, 32)
        self.mix = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.LogSigmoid())
        self.out = nn.Linear(32, 2)
        self.fill = fill

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.mix(self.words(tokens)).masked_fill(~mask.unsqueeze(-1), self.fill)
        return self.out(found.amax(1))


@pair(
    "padding-invariance",
    source=f"{GITHUB}/UKPLab/sentence-transformers/blob/master/sentence_transformers/models/Pooling.py",
    where="Strongest.forward",
)
def maximum_over_words_with_padding_at_zero(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Strongest(0.0 if broken else -1e9), with_mask(), nn.CrossEntropyLoss())


class Diluted(nn.Module):
    """A sum over words, divided by the width of the batch or by the number of words."""

    def __init__(self, by_width: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, 32)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.out = nn.Linear(32, 2)
        self.by_width = by_width

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.gru(self.words(tokens))
        total = (hidden * mask.unsqueeze(-1)).sum(1)
        return self.out(total / (tokens.shape[1] if self.by_width else mask.sum(1, keepdim=True)))


@pair("padding-invariance", source=f"{FORUM}/t/average-of-lstm-outputs-with-padding/57914", where="Diluted")
def masked_sum_divided_by_the_width(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Diluted(by_width=broken), with_mask(), nn.CrossEntropyLoss())


class Recordings(nn.Module):
    """Sensor frames weighted by attention over time."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.LayerNorm(32))
        self.weigh = nn.Linear(32, 1)
        self.out = nn.Linear(32, 2)
        self.masks = masks

    def forward(self, frames: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.mix(frames)
        scores = self.weigh(hidden).squeeze(-1)
        if self.masks:
            scores = scores.masked_fill(frame_mask == 0, float("-inf"))
        weights = scores.softmax(1)
        return self.out((weights.unsqueeze(-1) * hidden).sum(1))


def recordings() -> DataLoader[Any]:
    """Batches ``((frames, mask), labels)``: 96 recordings of 6 sensors, and of different lengths."""
    draw = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    rows: Any = []
    for number in range(96):
        frames = torch.randn(draw.randint(6, 20), 6, generator=generator)
        frames[:, 0] += 2.0 * (number % 2) - 1.0
        rows.append((frames, number % 2))

    def collate(picked: list[Any]) -> Any:
        frames = pad_sequence([row for row, _ in picked], batch_first=True)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row, _ in picked], batch_first=True)
        return (frames, mask), torch.tensor([label for _, label in picked])

    return loader(rows, collate)


@pair(
    "padding-invariance",
    source=f"{FORUM}/t/masking-attention-weights-in-pytorch/48216",
    where="although `frame_mask` marks them",
)
def attention_over_frames_that_are_padding(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Recordings(masks=not broken), recordings(), nn.CrossEntropyLoss())


class Names(nn.Module):
    """Where a name is from, by its letters, read by a GRU in both directions."""

    def __init__(self, packs: bool) -> None:
        super().__init__()
        self.letters = nn.Embedding(28, 24, padding_idx=0)
        self.gru = nn.GRU(24, 16, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 2)
        self.packs = packs

    def forward(self, names: torch.Tensor) -> torch.Tensor:
        vectors = self.letters(names)
        if not self.packs:
            return self.out(self.gru(vectors)[0].amax(1))
        lengths = (names != 0).sum(1).cpu()
        packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, padding_value=-1e9)
        return self.out(states.amax(1))


def letters() -> DataLoader[Any]:
    """Batches ``(ids, labels)``: names of two tongues, padded with 0."""
    draw = random.Random(0)
    rows: Any = []
    for number in range(96):
        usual, other = (range(1, 14), range(14, 27))[:: 1 - 2 * (number % 2)]
        name = [draw.choice(usual if draw.random() < 0.8 else other) for _ in range(draw.randint(4, 12))]
        rows.append((torch.tensor(name), number % 2))

    def collate(picked: list[Any]) -> Any:
        return pad_sequence([name for name, _ in picked], batch_first=True), torch.tensor(
            [label for _, label in picked]
        )

    return loader(rows, collate)


@pair(
    "padding-invariance",
    level="warn",
    source=f"{FORUM}/t/understanding-pack-padded-sequence-and-pad-packed-sequence/4099",
    where="gru",
)
def names_read_backwards_from_their_padding(broken: bool) -> Target:
    torch.manual_seed(0)
    return Target(Names(packs=not broken), letters(), nn.CrossEntropyLoss())
