"""Names of classes that stand in the text they are to be told from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debugkit import Target
from debugkit.data.answers import Answers
from debugkit.data.feature_blocks import is_tokens, token_rows
from debugkit.data.rows import Rows
from debugkit.tokens.codec import Codec

_SHORTEST = 3
_MOST_ROWS = 512


@dataclass(frozen=True)
class LabelWords:
    """How often texts name their own class, and how often another one.

    Attributes:
        texts: how many texts were read.
        own: how many name their own class.
        other: how many name another class.
        example: the place of a text that names its own.
        name: the name in it.
    """

    texts: int
    own: int
    other: int
    example: int
    name: str


def label_words(rows: Rows, answers: Answers, names: Mapping[int, str], target: Target) -> LabelWords | None:
    """Look for class names in the texts; ``None`` without names or texts.

    Args:
        rows: the scanned samples.
        answers: their classes.
        names: by class.
        target: whose tokenizer reads token ids.
    """
    classes = [int(value) for value in answers.classes]
    patterns = {value: _pattern(names[value]) for value in classes if value in names}
    if len(patterns) < max(2, len(classes)) or any(pattern is None for pattern in patterns.values()):
        return None
    if len({names[value].lower() for value in classes}) < len(classes):
        return None
    chosen = answers.samples[:_MOST_ROWS].tolist()
    texts = _texts(rows, chosen, target)
    if texts is None:
        return None
    room = 2 + max(len(names[value].split()) for value in classes)
    views = (texts, [_ends(text, room) for text in texts], [_ends(text, -room) for text in texts])
    counted = [_count(view, chosen, answers.values.tolist(), names, patterns) for view in views]
    return max(counted, key=lambda found: found.own - found.other)


def _count(
    texts: Sequence[str],
    chosen: Sequence[int],
    values: Sequence[int],
    names: Mapping[int, str],
    patterns: Mapping[int, re.Pattern[str] | None],
) -> LabelWords:
    own = other = 0
    example, name = -1, ""
    for text, sample, value in zip(texts, chosen, values, strict=False):
        hits = {index for index, pattern in patterns.items() if pattern is not None and pattern.search(text)}
        if value in hits:
            own += 1
            example, name = (sample, names[value]) if example < 0 else (example, name)
        other += bool(hits - {value})
    return LabelWords(len(texts), own, other, example, name)


def _ends(text: str, count: int) -> str:
    """The first words of a text, or the last."""
    found = text.split()
    return " ".join(found[:count] if count > 0 else found[count:])


def _pattern(name: str) -> re.Pattern[str] | None:
    words = re.findall(r"[^\W_]+", name)
    if (
        len("".join(words)) < _SHORTEST
        or all(word.isdigit() for word in words)
        or re.fullmatch(r"LABEL_\d+", name)
    ):
        return None
    return re.compile(r"(?<![^\W_])" + r"[\W_]*".join(map(re.escape, words)) + r"(?![^\W_])", re.IGNORECASE)


def _texts(rows: Rows, chosen: Sequence[int], target: Target) -> list[str] | None:
    """The texts that the model reads: decoded token ids, or texts in batches that hold no token ids."""
    columns = [column for column in rows.inputs if is_tokens(column) and len(column.samples) == rows.count]
    named = [column for column in columns if column.path.endswith("input_ids")] or columns
    if named:
        if target.tokenizer is None:
            return None
        codec = Codec(getattr(target.tokenizer, "tokenizer", target.tokenizer))
        ids = token_rows(rows, named[0])
        decoded = [codec.decode(_plain(ids[sample], codec)) for sample in chosen]
        return None if any(text is None for text in decoded) else [text or "" for text in decoded]
    inputs = [t for p, t in rows.texts.items() if p not in rows.label_texts and len(t) == rows.count]
    if not inputs or rows.inputs:
        return None
    return [" ".join(texts[sample] for texts in inputs) for sample in chosen]


def _plain(ids: Any, codec: Codec) -> list[int]:
    return [int(index) for index in ids if int(index) not in codec.special and codec.knows(int(index))]
