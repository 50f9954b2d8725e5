"""Answers, tags and maps beside what they were made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from debugkit.checks.tokenizer._answer_spans import _fits, answers_in
from debugkit.checks.tokenizer._map_edges import apart, pairs_of
from debugkit.checks.tokenizer._words import Pieces

from debugkit.probes.supervision import SupervisedRow
from debugkit.tokens.codec import Codec


class Letters:
    """A tokenizer of single characters."""

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(chr(index) for index in ids)


class Named:
    """A tokenizer that names its pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def get_vocab(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.pieces)}

    def convert_ids_to_tokens(self, index: int) -> str:
        return self.pieces[index]


@pytest.mark.parametrize(
    ("span", "verdict"),
    [
        ("the moon", True),
        ("The Moon.", True),
        ("the moo", True),
        ("he moon", False),
        ("the moon r", False),
        ("a the moon", False),
        ("river", False),
        ("", False),
    ],
)
def test_a_span_has_to_be_the_answer_and_no_more(span: str, verdict: bool) -> None:
    codec = Codec(Letters())
    assert _fits(codec, codec.encode(span) or [], ["the moon"]) is verdict


def test_answers_without_letters_are_not_compared() -> None:
    assert _fits(Codec(Letters()), [33], ["!"]) is None


def test_answers_are_found_in_items() -> None:
    squad = {
        "context": "the cat sat",
        "question": "who?",
        "answers": {"text": ["the cat"], "answer_start": [0]},
    }
    assert answers_in(squad) == ("the cat",)
    assert answers_in(("who sat?", "the cat sat", "cat")) == ("cat",)
    assert answers_in({"input_ids": [1, 2]}) == ()


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (("un", "##like", "##ly", "cat"), [[0, 1, 2], [3]]),
        (("Ġun", "like", "ly", "Ġcat"), [[0, 1, 2], [3]]),
        (("▁un", "like", ",", "▁cat"), [[0, 1], [2], [3]]),
        (("▁日", "本", "▁a", "▁b"), [[0], [1], [2], [3]]),
    ],
)
def test_words_are_told_from_the_marks_of_pieces(pieces: tuple[str, ...], words: list[list[int]]) -> None:
    row = SupervisedRow(0, (0, 1, 2, 3), (True,) * 4, (0,) * 4, (True,) * 4)
    assert [*Pieces(Named(*pieces)).words(row, frozenset())] == words


def test_a_tokenizer_without_marks_tells_nothing() -> None:
    assert not Pieces(Named("a", "b", "c")).marked
    assert not Pieces(None).marked


def discs(count: int = 32, side: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    found = []
    for _ in range(count):
        a, b = torch.randint(8, side - 8, (2,), generator=generator).tolist()
        classes = ((y - a) ** 2 + (x - b) ** 2 < 36).long()
        found.append((classes + 0.2 * torch.randn(3, side, side, generator=generator), classes))
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image, number: image, None),
        (lambda image, number: image.flip(2) if number % 2 else image, "left to right"),
        (lambda image, number: image.flip(1), "top to bottom"),
        (lambda image, number: image.flip(1, 2), "180 degrees"),
        (lambda image, number: image.roll((7, -6), (1, 2)), "moved"),
    ],
)
def test_maps_that_were_changed_apart(change: Any, said: str | None) -> None:
    pairs = [(change(image, number), classes) for number, (image, classes) in enumerate(discs())]
    findings = [finding for finding in apart(pairs) if finding.level == "warn"]
    assert bool(findings) is (said is not None)
    assert said is None or said in findings[0].message


def test_maps_without_anything_to_see_say_nothing() -> None:
    noise = torch.randn(32, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    random = torch.randint(0, 3, (32, 24, 24), generator=torch.Generator().manual_seed(2))
    assert not any(finding.level == "warn" for finding in apart([*zip(noise, random, strict=True)]))
    (empty,) = apart([(torch.zeros(1, 24, 24), torch.zeros(24, 24, dtype=torch.long))] * 32)
    assert empty.level == "note"


def test_maps_of_any_form_are_found() -> None:
    images = torch.randn(4, 3, 16, 16)
    classes = torch.randint(0, 3, (4, 16, 16))
    one_hot = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    for labels in (classes, classes.unsqueeze(1), classes.float(), one_hot):
        (found, *_) = pairs_of([(images, labels)])
        assert torch.equal(found[1], classes[0])
    assert pairs_of([(images, images.clone())]) == []
    assert len(pairs_of([{"image": images, "mask": images[:, 0].long()}])) == len(images)
    assert pairs_of([(images, torch.arange(4))]) == []
    assert pairs_of(["text"]) == []
