"""Texts that are empty or broken."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from statistics import median
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.data.shares import lower_bound, percent
from debugkit.probes.texts import Texts
from debugkit.testing import mlp
from debugkit.tokens.codec import excerpt

from ._text_faults import (
    CONTROL,
    ESCAPED_TWICE,
    MISREAD,
    PLACEHOLDER,
    PYTHON,
    UNDECODED,
    Fault,
    fault,
    has_entities,
    has_url,
    markup_share,
)

_FEWEST = 32
_CERTAIN = 2.33
_MOST = 0.5
_FEWEST_EMPTY = 8
_SENTENCE = 3
_MARKUP = 0.2
_ENTITIES = 0.25
_BOILERPLATE = 40
_SHARED = 0.8


@check
def text_quality(
    texts: Texts,
    *,
    max_broken: Annotated[
        float, Field(gt=0, lt=1, description="the share of texts that may be empty, and that may be broken")
    ] = 0.01,
) -> Iterator[Finding]:
    """Texts are empty or broken.

    The texts of the scanned samples, or what their token ids stand for, are searched for nothing but white
    space, placeholders of missing values (`nan`, `None`), text that was read in the wrong encoding,
    Python values written as text (`['a', 'b']`, `b'...'`), control characters and HTML that was escaped. A share
    counts where it is certain (99 % confidence) or the data set was read to its end.

    ## Why is this bad?
    A missing column read with pandas becomes the word `nan`, a file opened in the wrong encoding turns `é` into
    `Ã©`, and a list that goes through `str` brings its brackets and quotes along. Nothing crashes: the tokenizer
    makes tokens of anything, and the model learns from noise, or that noise means a class.

    ## What to do
    Look at the samples that are named, and repair the text where it is read: `open(..., encoding="utf-8")`,
    `dropna` or `fillna("")` before `astype(str)`, `" ".join(words)` in place of `str(words)`, `bytes.decode()`,
    `html.unescape`.

    ## Known limits
    HTML tags, web addresses, instructions that every text begins with, length and vocabulary are
    reported and not judged. Where a sample has several texts it counts as empty when all of them are. A tokenizer that
    removes accents removes the traces of a wrong encoding too.

    ## References
    - Luccioni and Viviano 2021, https://arxiv.org/abs/2105.02732
    - https://ftfy.readthedocs.io/en/latest/
    """
    empty = [number for number, text in enumerate(texts.values) if not text.strip()]
    sentences = _are_sentences(texts)
    faults = {
        number: found
        for number, text in enumerate(texts.values)
        if text.strip()
        and (found := fault(text, whole=not texts.decoded, sentence=sentences))
        and texts.exact[number]
    }
    twice = {number for number, found in faults.items() if found.kind == ESCAPED_TWICE}
    reported = [
        *_empty(texts, empty, max_broken),
        *_broken(texts, faults, max_broken),
        *_markup(texts, twice),
    ]
    yield from reported
    if not any(finding.level != "note" for finding in reported):
        yield _summary(texts, len(empty), len(faults))
    yield from _remarks(texts)


def _empty(texts: Texts, empty: Sequence[int], max_broken: float) -> Iterator[Finding]:
    count = len(texts.values)
    if not empty or not (_is_many(len(empty), texts, max_broken) or _are_most(empty, texts)):
        return
    most = _are_most(empty, texts)
    make: Callable[..., Finding] = fail if most and texts.alone else warn if most or texts.alone else note
    tokens = " but for special tokens" if texts.decoded else ""
    yield make(
        f"{len(empty):,} of {count:,} texts are empty{tokens} ({percent(len(empty) / count)}): their labels are "
        "learned from nothing",
        where=texts.names[empty[0]],
        hint="look at the samples where they are read: the name of the column, the filter, the join",
        empty=len(empty),
        texts=count,
    )


def _are_most(empty: Sequence[int], texts: Texts) -> bool:
    return len(texts.values) >= _FEWEST_EMPTY and len(empty) > _MOST * len(texts.values)


def _broken(texts: Texts, faults: dict[int, Fault], max_broken: float) -> Iterator[Finding]:
    if not _is_many(len(faults), texts, max_broken):
        return
    kinds = Counter(found.kind for found in faults.values()).most_common()
    first = next(number for number, found in faults.items() if found.kind == kinds[0][0])
    shown = ", ".join(f"{kind} in {count:,}" for kind, count in kinds)
    yield warn(
        f"{len(faults):,} of {len(texts.values):,} texts are broken ({percent(len(faults) / len(texts.values))}): "
        f"{shown}; `{_quoted(texts.values[first][max(0, faults[first].place - 20) :])}`",
        where=texts.names[first],
        hint=_HINTS[kinds[0][0]],
        broken=len(faults),
        texts=len(texts.values),
    )


_HINTS = {
    PLACEHOLDER: "drop the rows without text, or fill them, before they are made a string",
    UNDECODED: 'read the file in its own encoding: `open(..., encoding="...")`',
    MISREAD: 'read the file as UTF-8: `open(..., encoding="utf-8")`',
    PYTHON: "make text of the value itself: `' '.join(words)`, `value.decode()`",
    ESCAPED_TWICE: "`html.unescape(text)`, as often as it was escaped",
    CONTROL: "remove control characters where the text is read",
}


def _markup(texts: Texts, twice: Collection[int]) -> Iterator[Finding]:
    """HTML that makes up a large part of most texts, or entities that were not turned into characters."""
    count = len(texts.values)
    shares = [markup_share(text) for text in texts.values]
    tagged = [number for number, share in enumerate(shares) if share]
    pages = [number for number, share in enumerate(shares) if share >= _MARKUP]
    escaped = [
        number for number, text in enumerate(texts.values) if number not in twice and has_entities(text)
    ]
    if count >= _FEWEST and len(pages) > _MOST * count:
        yield warn(
            f"HTML tags are {percent(median(shares))} of the characters of a text in the middle, and over "
            f"{percent(_MARKUP)} in {len(pages):,} of {count:,}: `{_quoted(texts.values[pages[0]])}`",
            where=texts.names[pages[0]],
            hint="take the text out of the page before it is tokenized",
            pages=len(pages),
            texts=count,
        )
    elif tagged:
        yield note(f"{len(tagged):,} of {count:,} texts hold HTML tags", where=texts.names[tagged[0]])
    if count >= _FEWEST and len(escaped) > _ENTITIES * count:
        yield warn(
            f"{len(escaped):,} of {count:,} texts hold escaped characters such as `&quot;` and no tags: "
            f"`{_quoted(texts.values[escaped[0]])}`",
            where=texts.names[escaped[0]],
            hint="`html.unescape(text)` where the text is read",
            escaped=len(escaped),
            texts=count,
        )
    elif escaped:
        yield note(f"{len(escaped):,} of {count:,} texts hold HTML entities", where=texts.names[escaped[0]])


def _is_many(number: int, texts: Texts, share: float) -> bool:
    """Whether more than a share of all texts is meant, as far as those that were read can prove it."""
    count = len(texts.values)
    if number < 2 or count < _FEWEST or number <= share * count:
        return False
    return texts.complete or lower_bound(number / count, count, _CERTAIN) > share


def _are_sentences(texts: Texts) -> bool:
    return median(len(text.split()) for text in texts.values) >= _SENTENCE


def _summary(texts: Texts, empty: int, broken: int) -> Finding:
    count = len(texts.values)
    lengths = sorted(len(text) for text in texts.values)
    words = Counter(word for text in texts.values for word in text.lower().split())
    origin = "decoded " if texts.decoded else ""
    return note(
        f"{empty:,} empty and {broken:,} broken among {count:,} {origin}texts of {lengths[0]:,} to {lengths[-1]:,} "
        f"characters (median {median(lengths):,.0f}), {len(words):,} different among {words.total():,} words",
        where=texts.path or None,
        texts=count,
        empty=empty,
        broken=broken,
        median_length=median(lengths),
        words=words.total(),
        different_words=len(words),
    )


def _remarks(texts: Texts) -> Iterator[Finding]:
    """What is natural in many data sets, and still worth knowing."""
    count = len(texts.values)
    for path, values in texts.fields.items() if len(texts.fields) > 1 else ():
        if empty := sum(not value.strip() for value in values):
            yield note(f"`{path}` is empty in {empty:,} of {count:,} samples", where=path)
    if addresses := sum(has_url(text) for text in texts.values):
        yield note(f"{addresses:,} of {count:,} texts hold web addresses")
    for side, text in _boilerplate(texts.values):
        yield note(f"most texts {side} with the same {len(text):,} characters: `{_quoted(text)}`")


def _boilerplate(values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The long beginning, and the long end, that most texts share."""
    if len(values) < _FEWEST_EMPTY or len({*values}) < len(values) / 2:
        return
    for side, turned in (("begin", values), ("end", [text[::-1] for text in values])):
        head, often = Counter(text[:_BOILERPLATE] for text in turned).most_common(1)[0]
        if often >= _SHARED * len(values) and len(head) == _BOILERPLATE:
            shared = _common_prefix([text for text in turned if text.startswith(head)])
            yield side, shared if side == "begin" else shared[::-1]


def _common_prefix(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    length = next(
        (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:length]


def _quoted(text: str) -> str:
    return excerpt(text).replace("`", "'")


_SHARED_WORDS = "the a this that says about after before with from again today week report reader"
_TOPICS = (
    "match goal team coach league draw stadium season penalty referee transfer cup",
    "bank rate loan market profit share tax budget export currency price debt",
)


def _articles(texts: Sequence[str]) -> Target:
    """Texts of two topics, classified by how often each word of a topic occurs."""
    words = " ".join(_TOPICS).split()
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]

    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x = torch.tensor([[float(word in text) for word in words] for text in batch["text"]])
        return torch.nn.functional.cross_entropy(model(x), batch["label"])

    loader: DataLoader[Any] = DataLoader(rows, batch_size=16, shuffle=True)  # type: ignore[arg-type]
    return Target(mlp(features=len(words)), loader, training_step=step)


def _sentences(samples: int = 64) -> list[str]:
    draw = random.Random(0)
    return [
        " ".join(draw.sample(_TOPICS[number % 2].split(), 5) + draw.sample(_SHARED_WORDS.split(), 4))
        for number in range(samples)
    ]


def good() -> Target:
    return _articles(_sentences())


def good_accents() -> Target:
    return _articles([f"«{text}» déjà vu à Orléans, nº 5 — “été”" for text in _sentences()])


def bad_mostly_empty() -> Target:
    return _articles([text if number % 3 == 0 else "" for number, text in enumerate(_sentences())])


def bad_wrong_encoding() -> Target:
    return _articles([f"{text} à l'été".encode().decode("cp1252") for text in _sentences()])


def bad_missing_values_as_text() -> Target:
    return _articles(
        [str(float("nan")) if number % 9 == 4 else text for number, text in enumerate(_sentences())]
    )


def bad_lists_as_text() -> Target:
    return _articles([str(text.split()) for text in _sentences()])
