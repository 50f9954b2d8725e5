"""Healthy models of token sequences, written by hand."""

from __future__ import annotations

from typing import Any

import torch
from auto_sizes import BOS, EOS, FIRST, PAD
from groups import adamw
from hand_vision import loader
from torch import nn
from torch.nn import functional

from debugkit import Target

SAMPLES, BATCH, LENGTH, VOCABULARY, WIDTH = 192, 16, 16, 60, 32

Batch = dict[str, torch.Tensor]


def _rows(fields: Batch, shuffle: bool = True) -> torch.utils.data.DataLoader[Batch]:
    rows = [{name: value[row] for name, value in fields.items()} for row in range(SAMPLES)]
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(rows, BATCH, shuffle, generator=generator)  # type: ignore[arg-type]


def opinions() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``[n, length]`` and whether most of the telling words among them are of the second kind ``[n]``."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(FIRST + 20, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    labels = torch.randperm(SAMPLES, generator=generator) % 2
    kinds = torch.stack([labels, labels, labels, 1 - labels], 1)
    words = FIRST + 10 * kinds + torch.randint(0, 10, kinds.shape, generator=generator)
    places = torch.rand(ids.shape, generator=generator).argsort(1)[:, : words.shape[1]]
    return ids.scatter(1, places, words), labels


def repeating() -> torch.Tensor:
    """Token ids ``[n, length]`` that repeat every four tokens."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(FIRST, VOCABULARY, (SAMPLES, 4), generator=generator).repeat(1, LENGTH // 4)


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], outputs: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.cells = kind(WIDTH, WIDTH, num_layers=2, batch_first=True, bidirectional=last, dropout=0.1)
        self.score = nn.Linear(2 * WIDTH if last else WIDTH, outputs)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.cells(self.embedding(ids))
        return self.score(states.mean(1) if self.last else states)  # type: ignore[no-any-return]


def _classifier(kind: type[nn.LSTM] | type[nn.GRU]) -> Target:
    model = _Recurrent(kind, 2, last=True)
    return Target(model, loader(*opinions()), nn.CrossEntropyLoss(), optimizer=adamw(model))


def lstm() -> Target:
    """A bidirectional LSTM classifier."""
    return _classifier(nn.LSTM)


def gru() -> Target:
    """A bidirectional GRU classifier."""
    return _classifier(nn.GRU)


def _next_token(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    (ids,) = batch
    return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def lstm_language() -> Target:
    """An LSTM language model with a step that shifts the labels."""
    model = _Recurrent(nn.LSTM, VOCABULARY, last=False)
    return Target(model, loader(repeating()), training_step=_next_token, optimizer=adamw(model))


def gru_language() -> Target:
    """A GRU language model on inputs and targets that the loader has shifted."""
    model = _Recurrent(nn.GRU, VOCABULARY, last=False)
    ids = repeating()

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(scores.flatten(0, 1), labels.flatten())

    pairs = loader(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    return Target(model, pairs, loss, optimizer=adamw(model))


class _GPT(nn.Module):
    """A decoder with tied weights; a prefix may be seen as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.score.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor, prefix: int = 0) -> torch.Tensor:
        length = ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        later[:, :prefix] = False
        states = self.embedding(ids) + self.places.weight[:length]
        return self.score(self.norm(self.layers(states, mask=later)))  # type: ignore[no-any-return]


def gpt() -> Target:
    """A GPT over characters, its output tied to its embedding."""
    model = _GPT()
    return Target(model, loader(repeating()), training_step=_next_token, optimizer=adamw(model))


def prefix_language() -> Target:
    """A prefix-LM: the first half is read both ways and not predicted."""
    model, half = _GPT(), LENGTH // 2

    def step(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (ids,) = batch
        scores = model(ids[:, :-1], prefix=half)[:, half - 1 :]
        return functional.cross_entropy(scores.flatten(0, 1), ids[:, half:].flatten())

    return Target(model, loader(repeating()), training_step=step, optimizer=adamw(model))


class _Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH + 1, WIDTH))
        self.core = nn.Transformer(WIDTH, 4, 2, 2, 64, 0.1, batch_first=True)
        self.score = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=source.device).triu(1)
        read, written = (self.embedding(ids) + self.places[: ids.shape[1]] for ids in (source, target))
        return self.score(self.core(read, written, tgt_mask=later))  # type: ignore[no-any-return]


def encoder_decoder() -> Target:
    """A transformer that writes its source backwards."""
    generator = torch.Generator().manual_seed(6)
    source = torch.randint(FIRST, VOCABULARY, (SAMPLES, 8), generator=generator)
    start, end = torch.full((SAMPLES, 1), BOS), torch.full((SAMPLES, 1), EOS)
    target = torch.cat([start, source.flip(1), end], 1)
    model = _Translator()

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        scores = model(batch["source"], batch["target"][:, :-1])
        return functional.cross_entropy(scores.flatten(0, 1), batch["target"][:, 1:].flatten())

    rows = _rows({"source": source, "target": target})
    return Target(model, rows, training_step=step, optimizer=adamw(model))


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.score = nn.Linear(WIDTH, 3)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        states = self.layers(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        scores = self.score(states)
        if labels is None:
            return {"logits": scores}
        return {"loss": functional.cross_entropy(scores.flatten(0, 1), labels.flatten()), "logits": scores}


def tagger() -> Target:
    """A tagger on rows of several lengths, padded and masked, that returns its loss in a mapping."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(FIRST, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    outside = torch.arange(LENGTH) >= torch.randint(6, LENGTH + 1, (SAMPLES, 1), generator=generator)
    fields = {
        "input_ids": ids.masked_fill(outside, PAD),
        "attention_mask": (~outside).long(),
        "labels": (ids % 3).masked_fill(outside, -100),
    }
    model = _Tagger()
    return Target(model, _rows(fields), optimizer=adamw(model))


class _Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, WIDTH, mode="mean")
        self.score = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.score(self.bag(ids))  # type: ignore[no-any-return]


def bag_of_words() -> Target:
    """An embedding bag and a linear layer."""
    model = _Bag()
    return Target(model, loader(*opinions()), nn.CrossEntropyLoss(), optimizer=adamw(model, 3e-3))


def lora() -> Target:
    """LoRA on a small BERT, the head trained in full."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=PAD,
    )
    adapter: Any = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = get_peft_model(BertForSequenceClassification(config), adapter).train()
    ids, labels = opinions()
    rows = _rows({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return Target(model, rows, optimizer=adamw(model))


MODELS = {
    "lstm": lstm,
    "gru": gru,
    "lstm-language": lstm_language,
    "gru-language": gru_language,
    "gpt": gpt,
    "prefix-language": prefix_language,
    "encoder-decoder": encoder_decoder,
    "tagger": tagger,
    "bag-of-words": bag_of_words,
    "lora": lora,
}
