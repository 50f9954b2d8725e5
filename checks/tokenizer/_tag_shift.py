"""Tags that fit other tokens than those they stand beside."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from debugkit import Finding, Target, warn
from debugkit.data.shares import percent
from debugkit.probes.supervision import SupervisedRow, Supervision
from debugkit.probes.token_targets import TokenTargets

from ._words import Pieces

_SHIFTS = (-3, -2, -1, 1, 2, 3)
_FEWEST_ROWS = 24
_FEWEST_PAIRS = 200
_FEWEST_TOKENS = 8
_PRIOR = 2.0
_MUCH = 0.25
_SOME = 0.05
_LITTLE = 0.2
_Z = 4.0

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Fit:
    """How well tokens explain the tags that an alignment gives them.

    Attributes:
        name: the alignment, in words.
        share: the share of the tags' entropy that is explained, on rows that were not counted.
        by_row: per row, the nats gained.
    """

    name: str
    share: float
    by_row: tuple[float, ...]


def shifted_tags(supervision: Supervision, targets: TokenTargets | None, target: Target) -> Iterator[Finding]:
    """Tags that the tokens at another distance, or the words at the same count, explain much better.

    A causal model may be asked for what comes next, so that its tags are not judged.
    """
    if targets is not None and targets.causal and not targets.alone:
        return
    rows = supervision.every_row()
    given = _fit("as given", [_pairs(row, 0) for row in rows])
    if given is None:
        return
    fits = [
        _fit(
            f"the token {abs(s)} position{'s' if abs(s) > 1 else ''} {'after' if s > 0 else 'before'} it",
            found,
        )
        for s in _SHIFTS
        if (found := [_pairs(row, s) for row in rows])
    ]
    pieces = Pieces(getattr(target.tokenizer, "tokenizer", target.tokenizer))
    if supervision.codec is not None and pieces.marked:
        special = supervision.codec.added
        for first in (0, 1):
            found = [_word_pairs(row, [*pieces.words(row, special)], first) for row in rows]
            fits.append(_fit("the word of the same number", found))
    best = max((fit for fit in fits if fit is not None), key=lambda fit: fit.share, default=None)
    least = _SOME if supervision.codec is not None else _MUCH
    if best is None or best.share < least or max(given.share, 0.0) > _LITTLE * best.share:
        return
    gains = [b - g for b, g in zip(best.by_row, given.by_row, strict=True) if b != g]
    if len(gains) < _FEWEST_ROWS or mean(gains) < _Z * stdev(gains) / math.sqrt(len(gains)):
        return
    better = sum(gain > 0 for gain in gains)
    yield warn(
        f"tags fit other tokens than theirs: {best.name} explains {percent(best.share)} of what tags say, the token "
        f"beside it {percent(max(given.share, 0.0))} ({better} of {len(gains)} rows fit better so)",
        where=supervision.name(rows[0]),
        hint="align tags and tokens by `word_ids()`, and shift neither of them alone",
        given=given.share,
        best=best.share,
    )


def _pairs(row: SupervisedRow, shift: int) -> Pairs:
    """Tokens with the tags of positions at a distance before them."""
    last = len(row.tokens)
    return [
        (row.tokens[place + shift], label)
        for place, label in enumerate(row.labels)
        if label is not None and row.supervised[place] and row.content[place] and 0 <= place + shift < last
        if row.content[place + shift]
    ]


def _word_pairs(row: SupervisedRow, words: Sequence[list[int]], first: int) -> Pairs:
    """First pieces of words with the tags at the places of their numbers, counted from ``first``."""
    start = next((place for place, content in enumerate(row.content) if content), 0) + first
    found = []
    for number, word in enumerate(words):
        place = start + number
        if place < len(row.labels) and row.supervised[place] and (label := row.labels[place]) is not None:
            found.append((row.tokens[word[0]], label))
    return found


def _fit(name: str, rows: Sequence[Pairs]) -> Fit | None:
    """Explain the tags of every other row by counts from the rest, and the other way round."""
    every = Counter(label for pairs in rows for _, label in pairs)
    total = every.total()
    tokens = {token for pairs in rows for token, _ in pairs}
    if len(rows) < _FEWEST_ROWS or total < _FEWEST_PAIRS or len(every) < 2 or len(tokens) < _FEWEST_TOKENS:
        return None
    entropy = -sum(count / total * math.log(count / total) for count in every.values())
    tables: list[dict[int, Counter[int]]] = [defaultdict(Counter), defaultdict(Counter)]
    for number, pairs in enumerate(rows):
        for token, label in pairs:
            tables[number % 2][token][label] += 1
    gains = []
    for number, pairs in enumerate(rows):
        table = tables[1 - number % 2]
        gain = 0.0
        for token, label in pairs:
            base = every[label] / total
            found = table.get(token)
            if found is not None:
                gain += math.log((found[label] + _PRIOR * base) / ((found.total() + _PRIOR) * base))
        gains.append(gain)
    return Fit(name, sum(gains) / (total * entropy), tuple(gains))
