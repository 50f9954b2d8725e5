"""Mistakes between a tokenizer, its padding and its limits on one side and the model on the other."""

from __future__ import annotations

import random
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from debugkit import Target
from debugkit.testing import word_tokenizer

from . import pair

DOCS = "https://huggingface.co/docs/transformers"
FORUM = "https://discuss.pytorch.org"
GITHUB = "https://github.com"

COLD = ("snow", "ice", "frost", "hail", "sleet", "scarf", "glove", "sledge")
WARM = ("sun", "heat", "sand", "beach", "melon", "shade", "fan", "swim")
OTHER = ("we", "had", "some", "more", "of", "the", "and", "then", "a", "little", "day", "today")
WORDS = (*COLD, *WARM, *OTHER)
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def stories(count: int = 96, shortest: int = 5, longest: int = 24, seed: int = 0) -> list[tuple[str, int]]:
    """Different texts of many lengths; every other word tells the label, 0 or 1."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        told = (COLD, WARM)[number % 2]
        length = draw.randint(shortest, longest)
        words = [draw.choice(told if place % 2 else OTHER) for place in range(length)]
        found.append((" ".join(words), number % 2))
    return found


def encoded(tokenizer: Any, texts: list[tuple[str, int]], **options: Any) -> list[dict[str, Any]]:
    return [{"input_ids": tokenizer(text, **options)["input_ids"], "labels": y} for text, y in texts]


def collator(tokenizer: Any, *, drop: tuple[str, ...] = (), **options: Any) -> Any:
    """Pad ids with the tokenizer's own method."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padding = {"padding": True, **options}
        batch = dict(
            tokenizer.pad({"input_ids": [r["input_ids"] for r in rows]}, return_tensors="pt", **padding)
        )
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return {name: value for name, value in batch.items() if name not in drop}

    return collate


def loader(rows: Any, collate: Any = None, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=collate)


def own_loss(model: nn.Module, batch: Any) -> Any:
    return model(**batch).loss


def bert(rows: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=rows, max_position_embeddings=64, **{**TINY, **options})
    )


def next_token(tokenizer: Any, rows: list[list[int]]) -> DataLoader[Any]:
    def collate(picked: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = dict(tokenizer.pad({"input_ids": picked}, return_tensors="pt"))
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    return loader(rows, collate)


# vocabulary-size


@pair(
    "vocabulary-size",
    source=f"{DOCS}/main_classes/model#transformers.PreTrainedModel.resize_token_embeddings",
    where="word_embeddings",
)
def tokens_added_before_a_trainer(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    model = bert(len(tokenizer))
    tokenizer.add_tokens(["<degrees>", "<date>"])
    if not broken:
        model.resize_token_embeddings(len(tokenizer))
    texts = [(f"<date> {text} <degrees>" if n % 3 else text, y) for n, (text, y) in enumerate(stories())]
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=16,
        max_steps=50,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=encoded(tokenizer, texts),  # type: ignore[arg-type]
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
    )
    return Target.from_trainer(trainer)


@pair("vocabulary-size", source=f"{GITHUB}/huggingface/transformers/issues/3021", where="[EMPTY]")
def pad_token_added_to_a_decoder(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    tokenizer.add_special_tokens({"pad_token": "[EMPTY]"})
    if not broken:
        model.resize_token_embeddings(len(tokenizer))
    rows = [row["input_ids"] for row in encoded(tokenizer, stories(shortest=12, longest=12))]
    return Target(model, next_token(tokenizer, rows), tokenizer=tokenizer)


class Fares(nn.Module):
    """A price from a city, a weekday and two numbers."""

    def __init__(self, cities: int) -> None:
        super().__init__()
        self.city = nn.Embedding(cities, 8)
        self.day = nn.Embedding(7, 4)
        self.head = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, kinds: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        known = torch.cat([self.city(kinds[:, 0]), self.day(kinds[:, 1]), numbers], dim=1)
        return self.head(known).squeeze(1)


@pair("vocabulary-size", source=f"{FORUM}/t/embedding-layer-index-out-of-range/55061", where="eval[")
def city_that_only_evaluation_knows(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, cities: int) -> TensorDataset:
        kinds = torch.stack(
            [
                torch.randint(cities, (count,), generator=generator),
                torch.randint(7, (count,), generator=generator),
            ],
            dim=1,
        )
        numbers = torch.randn(count, 2, generator=generator)
        price = numbers.sum(1) + kinds[:, 1].float() / 4 + kinds[:, 0].float().sin()
        return TensorDataset(kinds, numbers, price)

    train, test = rows(256, 12), rows(64, 13)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        kinds, numbers, price = batch
        return F.mse_loss(model(kinds, numbers), price)

    return Target(
        Fares(12 if broken else 13),
        loader(train, batch_size=32),
        training_step=step,
        eval_loader=DataLoader(test, batch_size=32),
    )


@pair("vocabulary-size", source=f"{GITHUB}/huggingface/transformers/issues/1110", where="token_type")
def token_types_for_a_model_that_has_one(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        type_vocab_size=1 if broken else 2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **TINY,
    )
    torch.manual_seed(0)
    firsts, seconds = stories(longest=12), stories(longest=12, seed=1)
    data = [
        ({**tokenizer(first, second, return_token_type_ids=True)}, y)
        for (first, y), (second, _) in zip(firsts, seconds, strict=True)
    ]

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        batch = dict(tokenizer.pad([row for row, _ in rows], return_tensors="pt"))
        return {**batch, "labels": torch.tensor([y for _, y in rows])}

    model = RobertaForSequenceClassification(config)
    return Target(model, loader(data, collate), tokenizer=tokenizer)


@pair("vocabulary-size", level="warn", source=f"{DOCS}/model_doc/bert", where="30,522")
def vocabulary_of_the_default_configuration(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    model = bert(30522 if broken else len(tokenizer), hidden_size=16)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer))
    return Target(model, data, tokenizer=tokenizer)


class Melody(nn.Module):
    """The next note from those before it, on two tables that are made apart."""

    def __init__(self, notes: int, outputs: int) -> None:
        super().__init__()
        self.notes = nn.Embedding(notes, 32)
        self.memory = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, outputs)

    def forward(self, notes: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(self.notes(notes))[0])


@pair("vocabulary-size", source=f"{FORUM}/t/indexerror-target-is-out-of-bounds/87880", where="scores")
def notes_that_can_be_read_and_not_written(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(40, (128, 1), generator=generator)
    steps = torch.randint(1, 4, (128, 16), generator=generator)
    notes = (starts + steps.cumsum(1)) % 40

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        (row,) = batch
        return F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())

    return Target(Melody(40, 36 if broken else 40), loader(TensorDataset(notes)), training_step=step)


# padding


@pair("padding", source=f"{DOCS}/troubleshooting#incorrect-output-when-padding-tokens-arent-masked")
def encoder_without_its_mask(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    drop = ("attention_mask",) if broken else ()
    data = loader(encoded(tokenizer, stories()), collator(tokenizer, drop=drop))
    return Target(bert(len(tokenizer)), data, tokenizer=tokenizer)


class Wrapped(nn.Module):
    """A transformers encoder under a head of one's own."""

    def __init__(self, rows: int, *, passes_mask: bool) -> None:
        super().__init__()
        self.encoder = BertModel(BertConfig(vocab_size=rows, max_position_embeddings=64, **TINY), False)
        self.head = nn.Linear(32, 2)
        self.passes_mask = passes_mask

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask if self.passes_mask else None
        hidden = self.encoder(input_ids, attention_mask=mask).last_hidden_state
        seen = attention_mask.unsqueeze(-1)
        return self.head((hidden * seen).sum(1) / seen.sum(1))


@pair("padding", source=f"{FORUM}/t/how-to-use-bert-in-a-custom-model", where="encoder(attention_mask")
def head_that_keeps_the_mask_from_its_encoder(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = Wrapped(len(tokenizer), passes_mask=not broken)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer, drop=("token_type_ids",)))
    return Target(model, data, nn.CrossEntropyLoss(), tokenizer=tokenizer)


@pair("padding", source=f"{GITHUB}/huggingface/transformers/issues/16136", where="no mask reaches")
def step_that_leaves_the_mask_in_the_batch(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        mask = {} if broken else {"attention_mask": batch["attention_mask"]}
        return F.cross_entropy(model(batch["input_ids"], **mask).logits, batch["labels"])

    data = loader(encoded(tokenizer, stories()), collator(tokenizer))
    return Target(bert(len(tokenizer)), data, training_step=step, tokenizer=tokenizer)


@pair("padding", source=f"{DOCS}/pad_truncation", where="leaves out")
def mask_from_before_the_special_tokens(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    inner = collator(tokenizer)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = inner(rows)
        if broken:
            short = batch["attention_mask"].sum(1, keepdim=True) - 2
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < short).long()
        return batch

    return Target(bert(len(tokenizer)), loader(encoded(tokenizer, stories()), collate), tokenizer=tokenizer)


class Attentive(nn.Module):
    """Two classes from a layer of self-attention; ``padding`` is true where there is nothing."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(self.embedding(ids), src_key_padding_mask=padding)
        return self.head(hidden[:, 0])


def padded_tuples(mask_of: Any) -> DataLoader[Any]:
    """Batches ``(ids, mask, labels)`` padded with 0 by hand."""
    tokenizer = word_tokenizer(WORDS)
    data = encoded(tokenizer, stories())

    def collate(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(r["input_ids"]) for r in rows], batch_first=True)
        return ids, mask_of(ids), torch.tensor([row["labels"] for row in rows])

    return loader(data, collate)


def attend(model: nn.Module, batch: Any) -> torch.Tensor:
    ids, mask, labels = batch
    return F.cross_entropy(model(ids, mask), labels)


@pair("padding", source=f"{FORUM}/t/transformer-mask-doesnt-do-anything/79765", where="inverted")
def key_padding_mask_the_other_way_round(broken: bool) -> Target:
    data = padded_tuples((lambda ids: ids != 0) if broken else (lambda ids: ids == 0))
    torch.manual_seed(0)
    return Target(Attentive(len(WORDS) + 4), data, training_step=attend)


class Weighted(Attentive):
    """The same with a mask of ones where there is text."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(ids, mask == 0)


@pair("padding", source=f"{DOCS}/pad_truncation", where="1 everywhere")
def mask_made_as_ones_like_the_ids(broken: bool) -> Target:
    data = padded_tuples(torch.ones_like if broken else (lambda ids: (ids != 0).long()))
    torch.manual_seed(0)
    return Target(Weighted(len(WORDS) + 4), data, training_step=attend)


@pair("padding", source=f"{GITHUB}/huggingface/transformers/pull/7501", where="pad_token_id")
def decoder_that_classifies_without_a_pad_id(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=2,
        eos_token_id=3,
    )
    config.pad_token_id = None if broken else tokenizer.pad_token_id
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer))
    return Target(model, data, tokenizer=tokenizer)


@pair("padding", level="warn", source=f"{DOCS}/model_doc/bert", where="left")
def encoder_padded_like_a_decoder(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.padding_side = "left" if broken else "right"
    data = loader(encoded(tokenizer, stories()), collator(tokenizer))
    return Target(bert(len(tokenizer)), data, tokenizer=tokenizer)


@pair("padding", level="warn", source=f"{DOCS}/pad_truncation", where="64 positions")
def everything_padded_to_the_maximum(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    options = {"padding": "max_length", "max_length": 64} if broken else {}
    data = loader(encoded(tokenizer, stories(longest=14)), collator(tokenizer, **options))
    return Target(bert(len(tokenizer)), data, tokenizer=tokenizer)


# truncation


@pair("truncation", level="warn", source=f"{DOCS}/pad_truncation", where="14")
def limit_left_over_from_a_test(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    options = {"truncation": True, "max_length": 14} if broken else {}
    data = loader(encoded(tokenizer, stories(128, longest=40), **options), collator(tokenizer))
    return Target(bert(len(tokenizer)), data, tokenizer=tokenizer)


class Bag(nn.Module):
    """Two classes from the mean of words; 0 is padding."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 32, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        seen = (ids != 0).unsqueeze(-1)
        return self.head((self.embedding(ids) * seen).sum(1) / seen.sum(1))


@pair("truncation", level="warn", source=FORUM, where="exactly 12")
def rows_sliced_by_hand(broken: bool) -> Target:
    numbers = {word: place + 1 for place, word in enumerate(WORDS)}
    rows = [([numbers[word] for word in text.split()], y) for text, y in stories(160, longest=30)]

    def collate(picked: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [torch.tensor(row[:12] if broken else row) for row, _ in picked]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([y for _, y in picked])

    return Target(Bag(len(WORDS) + 1), loader(rows, collate), nn.CrossEntropyLoss())


@pair("truncation", source=f"{GITHUB}/huggingface/trl/issues/644", where="answer")
def answers_behind_prompts_that_are_too_long(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    rows = []
    for prompt, label in stories(128, longest=30):
        question = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(" ".join((COLD, WARM)[label][:3]), add_special_tokens=False)["input_ids"]
        ids = [2, *question, *answer, 3]
        labels = [-100] * (1 + len(question)) + [*answer, 3]
        rows.append((ids[:20], labels[:20]) if broken else (ids, labels))

    def collate(picked: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        wide = max(len(ids) for ids, _ in picked)
        return {
            "input_ids": torch.tensor([ids + [0] * (wide - len(ids)) for ids, _ in picked]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (wide - len(ids)) for ids, _ in picked]),
            "labels": torch.tensor([labels + [-100] * (wide - len(labels)) for _, labels in picked]),
        }

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **TINY,
    )
    return Target(LlamaForCausalLM(config), loader(rows, collate), tokenizer=tokenizer)


@pair("truncation", source=f"{DOCS}/model_doc/llama", where="max_position_embeddings")
def rows_beyond_the_rotary_positions(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    rows = [tokenizer(text)["input_ids"] for text, _ in stories(longest=40)]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=32 if broken else 48,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **TINY,
    )
    return Target(LlamaForCausalLM(config), next_token(tokenizer, rows), tokenizer=tokenizer)


class Blocks(nn.Module):
    """Two classes with learned places up to ``longest``, as minGPT has them."""

    def __init__(self, rows: int, longest: int) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, 32)
        self.places = nn.Parameter(0.02 * torch.randn(1, longest, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        padding = ids == 0
        hidden = self.words(ids) + self.places[:, : ids.shape[1]]
        seen = (~padding).unsqueeze(-1)
        mixed = self.encoder(hidden, src_key_padding_mask=padding)
        return self.head((mixed * seen).sum(1) / seen.sum(1))


@pair("truncation", source=f"{GITHUB}/karpathy/minGPT", where="places")
def one_text_longer_than_the_places(broken: bool) -> Target:
    numbers = {word: place + 1 for place, word in enumerate(WORDS)}
    texts = [*stories(159, longest=24), *stories(1, shortest=36, longest=36, seed=5)]
    rows = [([numbers[word] for word in text.split()], y) for text, y in texts]

    def collate(picked: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [torch.tensor(row) for row, _ in picked]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([y for _, y in picked])

    torch.manual_seed(0)
    return Target(Blocks(len(WORDS) + 1, 24 if broken else 40), loader(rows, collate), nn.CrossEntropyLoss())


@pair("truncation", level="warn", source=f"{DOCS}/tasks/summarization", where="labels")
def targets_cut_shorter_than_they_are(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    pairs = []
    for text, _ in stories(128, longest=40):
        words = text.split()
        told = " ".join(words[1::2])
        cut = {"truncation": True, "max_length": 10} if broken else {}
        pairs.append((tokenizer(text)["input_ids"], tokenizer(told, **cut)["input_ids"]))

    def collate(picked: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        batch = dict(tokenizer.pad({"input_ids": [source for source, _ in picked]}, return_tensors="pt"))
        wide = max(len(target) for _, target in picked)
        labels = [target + [-100] * (wide - len(target)) for _, target in picked]
        return {**batch, "labels": torch.tensor(labels)}

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    return Target(T5ForConditionalGeneration(config), loader(pairs, collate), tokenizer=tokenizer)


# tokenizer-match


def trained_writer(tokenizer: Any, texts: list[str]) -> Any:
    """A small language model that has read the texts often."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **TINY,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = next_token(tokenizer, [tokenizer(text)["input_ids"] for text in texts])
    for _ in range(12):
        for batch in data:
            loss: Any = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pair("tokenizer-match", source=f"{DOCS}/main_classes/tokenizer", where="another tokenizer")
def vocabulary_built_again_in_another_order(broken: bool) -> Target:
    first = word_tokenizer(WORDS)
    model = trained_writer(first, [text for text, _ in stories(128)])
    second = word_tokenizer(sorted(WORDS)) if broken else first
    rows = [second(text)["input_ids"] for text, _ in stories(128, seed=1)]
    return Target(model, next_token(second, rows), tokenizer=second)


class Vectors(nn.Module):
    """Two classes from the mean of given word vectors."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.head = nn.Sequential(nn.Linear(table.shape[1], 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen = attention_mask.unsqueeze(-1)
        return self.head((self.embedding(input_ids) * seen).sum(1) / seen.sum(1))


@pair(
    "tokenizer-match", source=f"{FORUM}/t/can-we-use-pre-trained-word-embeddings", where="another tokenizer"
)
def word_vectors_read_from_the_wrong_row(broken: bool) -> Target:
    stems = [f"{a}{b}{c}{d}" for a in "bdfgmprst" for b in "aeiou" for c in "bdgkl" for d in "aeio"]
    words = [form for stem in stems for form in (stem, f"{stem}s", stem.upper())]
    random.Random(0).shuffle(words)
    tokenizer = word_tokenizer(words)
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(48, generator=generator)
    meaning = {stem: torch.randn(48, generator=generator) for stem in stems}
    table = torch.zeros(len(tokenizer), 48)
    for word, index in tokenizer.get_vocab().items():
        noise = torch.randn(48, generator=generator)
        table[index] = meaning.get(word.lower().rstrip("s"), noise) + 0.3 * noise + common
    if broken:
        table = table.roll(1, dims=0)  # a row for unknown words was put first
    draw = random.Random(1)
    texts = []
    for number in range(96):
        half = words[number % 2 * len(words) // 2 :][: len(words) // 2]
        texts.append((" ".join(draw.choice(half) for _ in range(draw.randint(6, 14))), number % 2))
    data = loader(encoded(tokenizer, texts), collator(tokenizer))
    return Target(Vectors(table), data, nn.CrossEntropyLoss(), tokenizer=tokenizer)


@pair(
    "tokenizer-match",
    level="warn",
    source=f"{GITHUB}/huggingface/transformers/issues/35869",
    where="eos_token_id",
)
def end_of_text_that_generation_does_not_know(broken: bool) -> Target:
    tokenizer = word_tokenizer([*WORDS, "<end>"])
    tokenizer.eos_token = "<end>"
    rows = [tokenizer(f"{text} <end>", add_special_tokens=False)["input_ids"] for text, _ in stories()]
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3 if broken else end,
        **TINY,
    )
    return Target(LlamaForCausalLM(config), next_token(tokenizer, rows), tokenizer=tokenizer)


@pair("tokenizer-match", level="warn", source=f"{DOCS}/llm_tutorial", where="generation_config")
def generation_that_was_not_told_of_the_new_end(broken: bool) -> Target:
    tokenizer = word_tokenizer([*WORDS, "<end>"])
    rows = [tokenizer(f"{text} <end>", add_special_tokens=False)["input_ids"] for text, _ in stories()]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **TINY,
    )
    model = LlamaForCausalLM(config)
    tokenizer.eos_token = "<end>"
    model.config.eos_token_id = tokenizer.eos_token_id
    if not broken:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Target(model, next_token(tokenizer, rows), tokenizer=tokenizer)


@pair("tokenizer-match", level="warn", source=f"{DOCS}/model_doc/roberta", where="pad_token_id")
def configuration_with_the_padding_of_another_tokenizer(broken: bool) -> Target:
    tokenizer = word_tokenizer(WORDS)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        pad_token_id=3 if broken else tokenizer.pad_token_id,
        bos_token_id=2,
        eos_token_id=3,
        **TINY,
    )
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(config)
    data = loader(encoded(tokenizer, stories()), collator(tokenizer))
    return Target(model, data, tokenizer=tokenizer)
