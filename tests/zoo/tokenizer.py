"""Mistakes between the text and the token ids."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from debugkit import Target

from . import pair

GITHUB = "https://github.com"
NO_END = f"{GITHUB}/huggingface/transformers/issues/22794"
DOUBLE_START = f"{GITHUB}/ml-explore/mlx-examples/issues/1095"

QUESTIONS = (
    "what does the fox jump over",
    "who was jumping over the lazy dog yesterday",
    "when did the parcel arrive",
    "where can I find the unopened box of tea",
    "why is the biscuit broken",
    "how long does the brewing take in the morning",
)
ANSWERS = (
    "the lazy dog",
    "a quick brown fox, unless I am mistaken",
    "late in the afternoon",
    "on the shelf behind the coffee",
    "the box was crushed on its way",
    "four minutes",
)


def texts(count: int = 48) -> list[tuple[str, str]]:
    """Questions with their answers, some of them longer than others."""
    return [
        (f"{QUESTIONS[n % 6]}{' please' * (n // 6 % 3)}?", f"{ANSWERS[n % 6]}{' indeed' * (n % 3)}")
        for n in range(count)
    ]


def byte_level(template: str | None = None, **special: Any) -> Any:
    """Byte-level BPE like GPT-2's or Llama 3's, that adds what ``template`` says."""
    names = [name for value in special.values() for name in ([value] if isinstance(value, str) else value)]
    names = list(dict.fromkeys(names))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(raw, trainer, template, special)


def word_piece(words: tuple[str, ...] = QUESTIONS + ANSWERS) -> Any:
    """WordPiece like BERT's, trained on some texts."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=list(special.values()), show_progress=False
    )
    return _trained(raw, trainer, "[CLS] $A [SEP]", special, words)


def unigram() -> Any:
    """Unigram like T5's, which closes each text."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(special.values()), unk_token="<unk>", show_progress=False
    )
    return _trained(raw, trainer, "$A </s>", special)


def _trained(
    raw: Any,
    trainer: Any,
    template: str | None,
    special: dict[str, Any],
    words: tuple[str, ...] = QUESTIONS + ANSWERS,
) -> Any:
    raw.train_from_iterator([*words, "please? indeed"] * 4, trainer)
    if template is not None:
        marks = [mark for mark in template.split() if mark != "$A"]
        second = template.replace("$A", "$B:1")
        raw.post_processor = processors.TemplateProcessing(
            single=template,
            pair=f"{template} {second.removeprefix('[CLS] ')}",
            special_tokens=[(mark, raw.token_to_id(mark)) for mark in marks],
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


class Reader(nn.Module):
    """Two classes from the mean vector of a text's tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 32)
        self.hidden = nn.Linear(32, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids, attention_mask):
        seen = attention_mask.unsqueeze(-1).float()
        pooled = (self.embedding(input_ids) * seen).sum(1) / seen.sum(1)
        return self.head(torch.relu(self.hidden(pooled)))


class Writer(nn.Module):
    """Each next token from the tokens so far."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.memory = nn.GRU(64, 64, batch_first=True)
        self.head = nn.Linear(64, vocabulary)

    def forward(self, input_ids, labels):
        logits = self.head(self.memory(self.embedding(input_ids))[0])
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Translator(nn.Module):
    """An answer, token by token, from a question."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.encoder = nn.GRU(64, 64, batch_first=True)
        self.decoder = nn.GRU(64, 64, batch_first=True)
        self.head = nn.Linear(64, vocabulary)

    def forward(self, input_ids, labels, decoder_input_ids=None):
        if decoder_input_ids is None:
            decoder_input_ids = labels.clamp(min=0).roll(1, dims=1).index_fill(1, torch.tensor([0]), 0)
        _, state = self.encoder(self.embedding(input_ids))
        logits = self.head(self.decoder(self.embedding(decoder_input_ids), state)[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def classify(tokenizer: Any, rows: list[list[int]], vocabulary: int | None = None) -> Target:
    """Tell questions from answers."""

    def collate(batch):
        ids = [row for row, _ in batch]
        mask = padded([[1] * len(row) for row in ids], 0)
        labels = torch.tensor([label for _, label in batch])
        return {
            "input_ids": padded(ids, tokenizer.pad_token_id),
            "attention_mask": mask,
            "labels": labels,
        }

    data: Any = [(row, number % 2) for number, row in enumerate(rows)]
    loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    return Target(Reader(vocabulary or len(tokenizer)), loader, nn.CrossEntropyLoss(), tokenizer=tokenizer)


def mixed(count: int = 48) -> list[str]:
    """A question, an answer, and so on."""
    return [text for both in texts(count) for text in both]


def write(tokenizer: Any, rows: list[list[int]]) -> Target:
    """Continue texts."""

    def collate(batch):
        return {"input_ids": padded(batch, tokenizer.pad_token_id), "labels": padded(batch, -100)}

    loader = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    return Target(Writer(len(tokenizer)), loader, training_step=lambda m, b: m(**b), tokenizer=tokenizer)


def translate(tokenizer: Any, pairs: list[tuple[list[int], list[int]]]) -> Target:
    """Answer questions."""

    def collate(batch):
        return {
            "input_ids": padded([source for source, _ in batch], tokenizer.pad_token_id),
            "labels": padded([target for _, target in batch], -100),
        }

    loader = DataLoader(pairs, batch_size=16, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    return Target(Translator(len(tokenizer)), loader, training_step=lambda m, b: m(**b), tokenizer=tokenizer)


def encoded(tokenizer: Any, rows: list[str], **options: Any) -> list[list[int]]:
    return [tokenizer(text, **options)["input_ids"] for text in rows]


def llama() -> Any:
    return byte_level("<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def chat() -> Any:
    return byte_level(
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )


@pair("tokenizer-output", level="warn", source=NO_END, where="</s>")
def texts_that_never_end(broken: bool) -> Target:
    tokenizer, end = llama(), "" if broken else "</s>"
    return write(tokenizer, encoded(tokenizer, [f"{q} {a}{end}" for q, a in texts()]))


@pair("tokenizer-output", level="warn", source=NO_END, where="<|end|>")
def turns_marked_but_never_ended(broken: bool) -> Target:
    tokenizer, end = chat(), "" if broken else "<|end|>\n"
    rows = [f"<|user|>{q}<|assistant|>{'yes' if n % 2 else 'no'}{end}" for n, (q, _) in enumerate(texts())]
    return write(tokenizer, encoded(tokenizer, rows))


@pair("tokenizer-output", level="warn", source=NO_END, where="labels")
def answers_to_write_that_never_end(broken: bool) -> Target:
    tokenizer = unigram()
    rows = texts()
    targets = encoded(tokenizer, [a for _, a in rows], add_special_tokens=not broken)
    return translate(tokenizer, list(zip(encoded(tokenizer, [q for q, _ in rows]), targets, strict=True)))


@pair("tokenizer-output", source=DOUBLE_START, where="<s>")
def two_beginnings_from_a_chat_template(broken: bool) -> Target:
    tokenizer = llama()
    rendered = [f"<s>[INST] {q} [/INST] {a}</s>" for q, a in texts()]
    return write(tokenizer, encoded(tokenizer, rendered, add_special_tokens=broken))


@pair("tokenizer-output", source=f"{GITHUB}/allenai/reward-bench/issues/164", where="[CLS]")
def marked_text_that_is_marked_again(broken: bool) -> Target:
    tokenizer = word_piece()
    rows = [f"[CLS] {text} [SEP]" for text in mixed()]
    return classify(tokenizer, encoded(tokenizer, rows, add_special_tokens=broken))


@pair("tokenizer-output", level="warn", source="https://arxiv.org/abs/1910.11015", where="[CLS]")
def classifier_without_special_tokens(broken: bool) -> Target:
    tokenizer = word_piece()
    return classify(tokenizer, encoded(tokenizer, mixed(), add_special_tokens=not broken))


@pair(
    "tokenizer-output",
    source="https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.resize_token_embeddings",
    where="no such id",
)
def ids_beyond_the_tokenizer(broken: bool) -> Target:
    tokenizer = word_piece()
    shift = len(tokenizer) if broken else 0
    rows = [[row[0], *(index + shift for index in row[1:-1]), row[-1]] for row in encoded(tokenizer, mixed())]
    return classify(tokenizer, rows, 2 * len(tokenizer))


@pair(
    "vocabulary-size",
    source="https://huggingface.co/docs/transformers/main_classes/data_collator",
    where="negative",
)
def inputs_padded_like_labels(broken: bool) -> Target:
    tokenizer = llama()
    target = write(tokenizer, encoded(tokenizer, [f"{q} {a}</s>" for q, a in texts()]))
    if broken:
        inner = target.train_loader.collate_fn  # type: ignore[union-attr]
        target.train_loader.collate_fn = lambda batch: {  # type: ignore[union-attr]
            **inner(batch),
            "input_ids": padded(batch, -100),
        }
    return target


@pair(
    "tokenizer-output",
    source="https://huggingface.co/docs/transformers/main_classes/tokenizer",
    where="[UNK]",
)
def vocabulary_of_another_language(broken: bool) -> Target:
    tokenizer = word_piece(("это совсем другой язык",) if broken else QUESTIONS + ANSWERS)
    return classify(tokenizer, encoded(tokenizer, mixed()))


@pair(
    "tokenizer-output",
    level="warn",
    source="https://huggingface.co/docs/transformers/tasks/token_classification",
    where="tokenised twice",
)
def byte_level_tokens_as_text(broken: bool) -> Target:
    tokenizer = byte_level(eos_token="<eot>", pad_token="<pad>")
    rows = [" ".join(tokenizer.tokenize(text)) for text in mixed()] if broken else mixed()
    return classify(tokenizer, encoded(tokenizer, rows))


@pair(
    "tokenizer-output",
    level="warn",
    source="https://huggingface.co/docs/transformers/tasks/token_classification",
    where="tokenised twice",
)
def word_pieces_as_text(broken: bool) -> Target:
    tokenizer = word_piece((*QUESTIONS, *ANSWERS, "# #"))
    rows = [" ".join(tokenizer.tokenize(text)) for text in mixed()] if broken else mixed()
    return classify(tokenizer, encoded(tokenizer, rows))
