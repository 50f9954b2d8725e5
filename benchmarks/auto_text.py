"""Text that a head can learn: token ids with the answers that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from auto_sizes import BOS, EOS, FIRST, LENGTH, MARK, MASK, PAD, VOCABULARY

SAMPLES = 64
CHOICES = 4
SHORTEST = 10

Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids and what follows from them.

    Attributes:
        ids: token ids ``[samples, length]``.
        answers: the other inputs and labels, each ``[samples, ...]``.
        mask: attention mask like ``ids``.
    """

    ids: torch.Tensor
    answers: dict[str, torch.Tensor]
    mask: torch.Tensor

    def samples(self) -> list[Sample]:
        """One mapping per sample."""
        fields = {"input_ids": self.ids, "attention_mask": self.mask, **self.answers}
        return [{name: value[row] for name, value in fields.items()} for row in range(len(self.ids))]


def rows(head: str, padded: bool = False) -> list[Sample]:
    """Learnable samples of a text head, of :data:`auto_sizes.LENGTH` tokens.

    Args:
        head: the name of the head.
        padded: give the samples several lengths and pad them on the right.
    """
    generator = torch.Generator().manual_seed(0)
    text = MAKERS[head](generator)
    if padded:
        text = _padded(text, generator)
    return text.samples()


def _ids(generator: torch.Generator, *shape: int) -> torch.Tensor:
    ids = torch.randint(FIRST, VOCABULARY, (*(shape or (SAMPLES,)), LENGTH), generator=generator)
    ids[..., 0], ids[..., -1] = BOS, EOS
    return ids


def _text(ids: torch.Tensor, **answers: torch.Tensor) -> Text:
    return Text(ids, answers, torch.ones_like(ids))


def _sequence(generator: torch.Generator) -> Text:
    """A mark at any place decides the class."""
    ids = _ids(generator)
    labels = torch.arange(SAMPLES) % 2
    places = torch.randint(1, SHORTEST - 1, (SAMPLES,), generator=generator)
    ids[torch.arange(SAMPLES)[labels == 1], places[labels == 1]] = MARK
    return _text(ids, labels=labels)


def _token(generator: torch.Generator) -> Text:
    """The tag follows from the token."""
    ids = _ids(generator)
    return _text(ids, labels=ids % 3)


def _causal(generator: torch.Generator) -> Text:
    """Four tokens that repeat."""
    ids = _ids(generator)[:, 1:5].repeat(1, LENGTH // 4)
    return _text(ids, labels=ids.clone())


def _masked(generator: torch.Generator) -> Text:
    """Tokens that count up in equal steps, some of them hidden."""
    ids = _ids(generator)
    steps = torch.arange(LENGTH) * torch.randint(1, 4, (SAMPLES, 1), generator=generator)
    ids = FIRST + (ids[:, 1:2] + steps) % (VOCABULARY - FIRST)
    masked = torch.rand(ids.shape, generator=generator) < 0.15
    masked[:, SHORTEST // 2] |= ~masked[:, :SHORTEST].any(1)
    labels = ids.masked_fill(~masked, -100)
    return _text(ids.masked_fill(masked, MASK), labels=labels)


def _question(generator: torch.Generator) -> Text:
    """The answer begins at a mark and has two tokens."""
    ids = _ids(generator)
    ids[:, 3:5] = EOS
    starts = torch.randint(5, SHORTEST - 2, (SAMPLES,), generator=generator)
    ids[torch.arange(SAMPLES), starts] = MARK
    return _text(ids, start_positions=starts, end_positions=starts + 1)


def _choice(generator: torch.Generator) -> Text:
    """The one choice with a mark is right."""
    ids = _ids(generator, SAMPLES, CHOICES)
    labels = torch.randperm(SAMPLES, generator=generator) % CHOICES
    ids[..., 3:5] = EOS
    places = torch.randint(5, SHORTEST - 1, (SAMPLES,), generator=generator)
    ids[torch.arange(SAMPLES), labels, places] = MARK
    return _text(ids, labels=labels)


def _next_sentence(generator: torch.Generator) -> Text:
    """The second half repeats the first, or is another text."""
    ids = _ids(generator)
    labels = torch.randperm(SAMPLES, generator=generator) % 2
    half = LENGTH // 2
    ids[:, half] = EOS
    follows = labels == 0
    ids[follows, half + 1 : -1] = ids[follows, 1 : half - 1]
    kinds = (torch.arange(LENGTH) > half).long().expand_as(ids).clone()
    return _text(ids, token_type_ids=kinds, labels=labels)


def _pairs(generator: torch.Generator) -> Text:
    """The target is the source, backwards, with an end."""
    ids = _ids(generator)
    labels = torch.cat([ids[:, 1:SHORTEST].flip(1), torch.full((SAMPLES, 1), EOS)], 1)
    return _text(ids, labels=labels)


def _layout(generator: torch.Generator) -> Text:
    """A question about a document: each token has a box, the answer begins at a mark."""
    text = _question(generator)
    corners = torch.randint(0, 30, (SAMPLES, LENGTH, 2), generator=generator)
    return dataclasses.replace(text, answers=text.answers | {"bbox": torch.cat([corners, corners + 20], -1)})


MAKERS = {
    "sequence": _sequence,
    "token": _token,
    "causal": _causal,
    "masked": _masked,
    "question": _question,
    "choice": _choice,
    "next-sentence": _next_sentence,
    "seq2seq": _pairs,
    "document": _layout,
    "encoder": _sequence,
}


def _padded(text: Text, generator: torch.Generator) -> Text:
    """Samples of several lengths: each ends as before, with padding and no labels after its end."""
    lengths = torch.randint(SHORTEST, LENGTH + 1, (len(text.ids),), generator=generator)
    lengths = lengths.view(-1, *[1] * (text.ids.ndim - 1))
    places = torch.arange(LENGTH).expand_as(text.ids)
    outside, moved = places >= lengths, (places == lengths - 1) & (text.ids[..., -1:] == EOS)
    answers = {
        name: value.masked_fill(outside | moved, -100)
        if name == "labels" and value.shape == places.shape
        else value
        for name, value in text.answers.items()
    }
    ids = text.ids.masked_fill(moved, EOS).masked_fill(outside, PAD)
    return Text(ids, answers, text.mask.masked_fill(outside, 0))


def shifted(samples: list[Sample]) -> list[Sample]:
    """The samples with each label one place to the left."""
    end = torch.tensor([-100])
    return [{**sample, "labels": torch.cat([sample["labels"][1:], end])} for sample in samples]


def candidates(head: str, padded: bool = False) -> Iterator[list[Sample]]:
    """The samples of a text head; with the decoder's inputs too, for a model that does not make them."""
    samples = rows(head, padded)
    yield samples
    if head == "seq2seq":
        start = torch.tensor([BOS])
        yield [
            {**sample, "decoder_input_ids": torch.cat([start, sample["labels"][:-1]])} for sample in samples
        ]
