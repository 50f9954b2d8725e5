"""Mistakes in what sequence models are asked to predict: labels that are shifted, lost, or should not count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from debugkit import Target

from . import pair

GITHUB = "https://github.com"
DOCS = "https://huggingface.co/docs/transformers"
COLLATORS = f"{DOCS}/main_classes/data_collator"
TAGGING = f"{DOCS}/tasks/token_classification"

SUBJECTS = (
    "the cat",
    "a dog",
    "my friend",
    "the old man",
    "our teacher",
    "a child",
    "the baker",
    "his sister",
)
VERBS = ("sees", "finds", "paints", "carries", "likes", "sells")
OBJECTS = (
    "a boat",
    "the moon",
    "red apples",
    "some bread",
    "the letter",
    "an umbrella",
    "two books",
    "a key",
)
PLACES = ("in the garden", "at home", "near the river", "on the roof", "today", "every morning")
WORDS = sorted(
    {word for part in (SUBJECTS, VERBS, OBJECTS, PLACES) for text in part for word in text.split()}
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentences(count: int = 96) -> list[str]:
    """Different short sentences of different lengths."""
    generator = torch.Generator().manual_seed(0)
    parts = (SUBJECTS, VERBS, OBJECTS, PLACES)
    found: dict[str, None] = {}
    while len(found) < count:
        picks = [part[int(torch.randint(len(part), (1,), generator=generator))] for part in parts]
        found[" ".join(picks[: 3 + len(found) % 2])] = None
    return list(found)


def fast(raw: Any, **special: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def words_tokenizer(*extra: str, **special: str) -> Any:
    """Whole words, with special tokens that it does not add by itself."""
    vocabulary = {word: index for index, word in enumerate((*extra, *special.values(), *WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = fast(raw, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    return tokenizer


def bert_tokenizer(pieces: Sequence[str]) -> Any:
    """WordPiece with ``[CLS]`` and ``[SEP]`` around a text."""
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL, *pieces))}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return fast(raw, **dict(zip(names, SPECIAL, strict=True)))


def sizes(vocabulary: int, **other: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **other,
    }


def llama(tokenizer: Any) -> nn.Module:
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**sizes(len(tokenizer), bos_token_id=None, **ends)))


def loader(rows: Any, collate: Callable[[Any], Any] | None = None) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate)


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def counting(length: int, count: int = 96) -> torch.Tensor:
    """``[count, length]`` ids that go round in steps of 1 to 3."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(30, (count, 1), generator=generator)
    steps = torch.arange(count).unsqueeze(1) % 3 + 1
    return 2 + (starts + steps * torch.arange(length)) % 30


class Writer(nn.Module):
    """Scores of the next token, from the tokens so far."""

    def __init__(self, vocabulary: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.memory = nn.GRU(64, 64, batch_first=True)
        self.head = nn.Linear(64, vocabulary)

    def forward(self, ids):
        return self.head(self.memory(self.embedding(ids))[0])


class Windows(Dataset[Any]):
    """A long text in pieces: each with what has to be predicted for it."""

    def __init__(self, text: torch.Tensor, ahead: int, length: int = 16) -> None:
        self.text, self.ahead, self.length = text, ahead, length

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index):
        start = index * self.length
        end = start + self.length
        return self.text[start:end], self.text[start + self.ahead : end + self.ahead]


def per_token(scores, y):
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


@pair("label-shift", source="https://github.com/karpathy/minGPT")
def windows_that_predict_themselves(broken: bool) -> Target:
    text = counting(18).flatten()
    return Target(Writer(), loader(Windows(text, 0 if broken else 1)), per_token)


@pair("label-shift", source=f"{GITHUB}/huggingface/transformers/issues/35066", where="t itself")
def decoder_that_does_not_shift_labels(broken: bool) -> Target:
    config = BartConfig(
        vocab_size=32,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
    )
    ids = counting(12)
    labels = ids.clone()
    if not broken:
        labels = torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], dim=1)
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    return Target(BartForCausalLM(config), loader(rows))


@pair("label-shift", source=f"{DOCS}/tasks/language_modeling", where="t + 2")
def labels_shifted_by_hand_for_a_model_that_shifts(broken: bool) -> Target:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32, n_positions=64, n_embd=64, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )
    ids = counting(13)
    x, y = (ids[:, :-1], ids[:, 1:]) if broken else (ids, ids.clone())
    return Target(model, loader([{"input_ids": i, "labels": j} for i, j in zip(x, y, strict=True)]))


@pair("label-shift", source=f"{DOCS}/model_doc/t5", where="decoder")
def decoder_that_is_given_its_labels(broken: bool) -> Target:
    config = T5Config(
        vocab_size=40,
        d_model=64,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    source, labels = counting(8), counting(16)[:, 8:]
    rows = [{"input_ids": i, "labels": y} for i, y in zip(source, labels, strict=True)]
    if broken:
        rows = [{**row, "decoder_input_ids": row["labels"]} for row in rows]
    return Target(T5ForConditionalGeneration(config), loader(rows))


class WriterWithoutLast(Writer):
    """Leaves out the last score, which has no next token."""

    def forward(self, ids):
        return super().forward(ids)[:, :-1]


@pair("label-shift", source="https://github.com/karpathy/minGPT", where="t itself")
def last_score_dropped_and_labels_cut_at_the_same_end(broken: bool) -> Target:
    def step(model, batch):
        (ids,) = batch
        return per_token(model(ids), ids[:, :-1] if broken else ids[:, 1:])

    return Target(WriterWithoutLast(), loader(TensorDataset(counting(17))), training_step=step)


@pair("label-shift", source="https://github.com/karpathy/nanoGPT", where="t - 1")
def x_and_y_swapped(broken: bool) -> Target:
    ids = counting(14)
    x, y = ids[:, :-1], ids[:, 1:]
    data = TensorDataset(y, x) if broken else TensorDataset(x, y)
    return Target(
        Writer(), loader(data), training_step=lambda m, batch: F.cross_entropy(m(batch[0]).mT, batch[1])
    )


@pair("label-shift", level="warn", source=COLLATORS, where="mask token")
def masked_words_for_a_causal_model(broken: bool) -> Target:
    tokenizer = words_tokenizer(pad_token="<pad>", eos_token="</s>", mask_token="<mask>", unk_token="<unk>")
    rows = [{"input_ids": tokenizer(f"{text} </s>")["input_ids"]} for text in sentences()]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=broken, mlm_probability=0.3)
    return Target(llama(tokenizer), loader(rows, collator), tokenizer=tokenizer)


@pair(
    "supervised-tokens",
    source=f"{GITHUB}/huggingface/transformers/issues/22794",
    where="never learns to stop",
)
def padding_token_that_ends_texts_too(broken: bool) -> Target:
    tokenizer = words_tokenizer(eos_token="</s>", unk_token="<unk>", pad_token="</s>" if broken else "<pad>")
    rows = [tokenizer(f"{text} </s>", return_token_type_ids=False) for text in sentences()]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Target(llama(tokenizer), loader(rows, collator), tokenizer=tokenizer)


@pair("supervised-tokens", source=COLLATORS, where="copy")
def masked_language_model_without_masks(broken: bool) -> Target:
    tokenizer = bert_tokenizer(WORDS)
    rows = [tokenizer(text, return_token_type_ids=False) for text in sentences()]
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm=not broken, mlm_probability=0.3, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    model = BertForMaskedLM(BertConfig(**sizes(len(tokenizer))))
    return Target(model, loader(rows, collator), tokenizer=tokenizer)


@pair("supervised-tokens", level="warn", source="https://arxiv.org/abs/1810.04805", where="in sight")
def loss_over_all_words_instead_of_the_masked(broken: bool) -> Target:
    tokenizer = bert_tokenizer(WORDS)
    rows = [tokenizer(text, return_token_type_ids=False) for text in sentences()]

    def collate(picked):
        batch = dict(tokenizer.pad(picked, return_tensors="pt"))
        ids = batch["input_ids"]
        hidden = (torch.rand(ids.shape) < 0.3) & (ids > 4)
        counts = ids > 4 if broken else hidden
        return {
            **batch,
            "input_ids": ids.masked_fill(hidden, tokenizer.mask_token_id),
            "labels": ids.masked_fill(~counts, -100),
        }

    model = BertForMaskedLM(BertConfig(**sizes(len(tokenizer))))
    return Target(model, loader(rows, collate), tokenizer=tokenizer)


TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def chat_tokenizer() -> Any:
    tokenizer = words_tokenizer(
        "<|user|>", "<|assistant|>", unk_token="<unk>", pad_token="<pad>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chats() -> list[list[dict[str, str]]]:
    """What someone sees, and where it is."""
    found = []
    for number, text in enumerate(sentences()):
        answer = " ".join((PLACES[number % 6], *text.split()[-2 - number % 2 :]))
        found.append([{"role": "user", "content": text}, {"role": "assistant", "content": answer}])
    return found


def chat_target(label: Callable[[Any, list[int]], list[int]], **options: Any) -> Target:
    """Conversations whose labels are made by ``label`` from the ids."""
    tokenizer = chat_tokenizer()
    rows = []
    for chat in chats():
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, **options))["input_ids"]
        rows.append((ids, label(tokenizer, ids)))

    def collate(picked):
        ids = padded([row for row, _ in picked], tokenizer.pad_token_id)
        mask = (ids != tokenizer.pad_token_id).long()
        labels = padded([row for _, row in picked], -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return Target(llama(tokenizer), loader(rows, collate), tokenizer=tokenizer)


def answers_after(mark: str) -> Callable[[Any, list[int]], list[int]]:
    """Labels for what follows a mark; none at all where it does not occur."""

    def label(tokenizer, ids):
        place = tokenizer.convert_tokens_to_ids(mark)
        start = ids.index(place) + 1 if place in ids else len(ids)
        return [-100] * start + ids[start:]

    return label


@pair("supervised-tokens", source=f"{GITHUB}/huggingface/trl/issues/1493", where="no token")
def answer_mark_that_does_not_occur(broken: bool) -> Target:
    return chat_target(answers_after("<|model|>" if broken else "<|assistant|>"))


@pair("supervised-tokens", level="warn", source=f"{GITHUB}/huggingface/trl/issues/632", where="questions")
def prompts_with_labels(broken: bool) -> Target:
    return chat_target((lambda tokenizer, ids: [*ids]) if broken else answers_after("<|assistant|>"))


@pair("supervised-tokens", level="warn", source=f"{GITHUB}/huggingface/trl/issues/4201", where="no answer")
def generation_prompt_after_each_conversation(broken: bool) -> Target:
    return chat_target(answers_after("<|assistant|>"), add_generation_prompt=broken)


@pair("supervised-tokens", source=f"{DOCS}/model_doc/t5", where="padding")
def sequences_to_write_padded_as_inputs_are(broken: bool) -> Target:
    config = T5Config(
        vocab_size=40, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    source, answers = counting(8), counting(16)[:, 8:]
    rows = [
        (i.tolist(), [*y[: 3 + n % 6].tolist(), 1])
        for n, (i, y) in enumerate(zip(source, answers, strict=True))
    ]

    def collate(picked):
        labels = padded([y for _, y in picked], 0 if broken else -100)
        return {"input_ids": torch.tensor([x for x, _ in picked]), "labels": labels}

    return Target(T5ForConditionalGeneration(config), loader(rows, collate))


@pair("supervised-tokens", level="warn", source=TAGGING, where="padding")
def tags_of_padding_that_count(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 30, (4 + n % 9,), generator=generator).tolist() for n in range(96)]

    def collate(picked):
        tags = padded([[index % 3 for index in row] for row in picked], 0 if broken else -100)
        return padded(picked, 0), tags

    model = nn.Sequential(nn.Embedding(30, 32), nn.Linear(32, 3))
    return Target(model, loader(rows, collate), per_token)
