"""Labels that stand beside other tokens, spans or pixels than those they were made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
)

from debugkit import Target

from . import pair
from .supervision import (
    DOCS,
    OBJECTS,
    TAGGING,
    WORDS,
    bert_tokenizer,
    loader,
    per_token,
    sentences,
    sizes,
)

ANSWERING = f"{DOCS}/tasks/question_answering"

STEMS = ("ber", "lon", "mad", "par", "os", "vien", "ro", "prag")
ENDS = ("##lin", "##don", "##rid", "##is", "##lo", "##na", "##me", "##ue")
NAMES = ["O", "B-LOC", "I-LOC"]


def tagged_words(count: int = 96) -> list[tuple[list[str], list[int]]]:
    """Sentences with names of two pieces, and the tags of their words."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for text in sentences(count):
        words, tags = text.split(), [0] * len(text.split())
        for place in sorted(torch.randperm(len(words), generator=generator)[:2].tolist(), reverse=True):
            stem, end = torch.randint(8, (2,), generator=generator).tolist()
            words.insert(place, STEMS[stem] + ENDS[end].removeprefix("##"))
            tags.insert(place, 1)
        found.append((words, tags))
    return found


def tagging(align: Callable[[list[int | None], list[int]], list[int]]) -> Target:
    tokenizer = bert_tokenizer((*WORDS, *STEMS, *ENDS))
    rows = []
    for words, tags in tagged_words():
        encoded = tokenizer(words, is_split_into_words=True, return_token_type_ids=False)
        rows.append({**encoded, "labels": align(encoded.word_ids(), tags)})
    names = dict(enumerate(NAMES))
    config = BertConfig(**sizes(len(tokenizer)), id2label=names, label2id={n: i for i, n in names.items()})
    collator = DataCollatorForTokenClassification(tokenizer)
    return Target(BertForTokenClassification(config), loader(rows, collator), tokenizer=tokenizer)


def by_word(places, tags):
    """The tag of its word for each piece, ``I-`` after ``B-``."""
    found, before = [], None
    for place in places:
        found.append(-100 if place is None else 2 * tags[place] if place == before else tags[place])
        before = place
    return found


@pair("label-alignment", level="warn", source=TAGGING, where="tagged words")
def tags_of_words_zipped_with_pieces(broken: bool) -> Target:
    def zipped(places, tags):
        return [-100, *tags[: len(places) - 2], *[0] * (len(places) - 2 - len(tags)), -100]

    return tagging(zipped if broken else by_word)


@pair("label-alignment", level="warn", source=TAGGING, where="the others are `O`")
def only_first_pieces_tagged(broken: bool) -> Target:
    def first_only(places, tags):
        whole = by_word(places, tags)
        return [0 if tag == 2 else tag for tag in whole]

    return tagging(first_only if broken else by_word)


@pair("label-alignment", level="warn", source="https://arxiv.org/abs/1603.01360", where="fit other tokens")
def tags_of_the_word_before(broken: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(40, (96, 12), generator=generator)
    tags = (ids % 4).roll(1, dims=1) if broken else ids % 4

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 32)
            self.memory = nn.LSTM(32, 32, batch_first=True, bidirectional=True)
            self.head = nn.Linear(64, 4)

        def forward(self, ids):
            return self.head(self.memory(self.embedding(ids))[0])

    return Target(Tagger(), loader(TensorDataset(ids, tags)), per_token)


def answering(move: int, ends_first: bool = False) -> Target:
    """Where in a sentence is what someone sees? The data set keeps the answer's text."""
    tokenizer = bert_tokenizer((*WORDS, "what", "is", "it", "?"))
    rows = []
    for number, text in enumerate(sentences()):
        answer = next(part for part in OBJECTS if part in text)
        encoded = tokenizer("what is it?", text, return_offsets_mapping=True, return_token_type_ids=True)
        first = text.index(answer)
        inside = [
            place
            for place, (begin, end) in enumerate(encoded["offset_mapping"])
            if encoded.sequence_ids()[place] == 1 and begin < first + len(answer) and end > first
        ]
        start, stop = inside[0] + move, inside[-1] + move
        if ends_first and number % 4 == 0:
            start, stop = stop, start
        kept = {key: encoded[key] for key in ("input_ids", "token_type_ids", "attention_mask")}
        rows.append({**kept, "start_positions": start, "end_positions": stop, "answer": answer})

    def collate(picked):
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        batch = dict(
            tokenizer.pad([{key: row[key] for key in inputs} for row in picked], return_tensors="pt")
        )
        spans = {
            key: torch.tensor([row[key] for row in picked]) for key in ("start_positions", "end_positions")
        }
        return {**batch, **spans}

    model = BertForQuestionAnswering(BertConfig(**sizes(len(tokenizer))))
    return Target(model, loader(rows, collate), tokenizer=tokenizer)


@pair("label-alignment", source=ANSWERING, where="decode to another text")
def answer_spans_one_token_late(broken: bool) -> Target:
    return answering(int(broken))


@pair("label-alignment", source=ANSWERING, where="end before they begin")
def answers_that_end_before_they_begin(broken: bool) -> Target:
    return answering(0, ends_first=broken)


class Scenes(Dataset[Any]):
    """Noisy pictures of a disc with a map of where it is, mirrored at random."""

    def __init__(self, together: bool) -> None:
        self.together = together
        generator = torch.Generator().manual_seed(0)
        y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        centres = torch.randint(7, 25, (96, 2), generator=generator)
        sizes = torch.randint(4, 7, (96,), generator=generator)
        self.maps = torch.stack(
            [((y - a) ** 2 + (x - b) ** 2 < r**2).long() for (a, b), r in zip(centres, sizes, strict=True)]
        )
        noise = torch.randn(96, 3, 32, 32, generator=generator)
        self.images = 2 * self.maps.unsqueeze(1) + 0.5 * noise

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index):
        image, classes = self.images[index], self.maps[index]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            classes = classes.flip(-1) if self.together else classes
        return image, classes


@pair(
    "label-alignment", level="warn", source="https://arxiv.org/abs/1910.11015", where="mirrored left to right"
)
def images_mirrored_without_their_maps(broken: bool) -> Target:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    return Target(model, loader(Scenes(together=not broken)), nn.CrossEntropyLoss())
