"""The text that the ids stand for: tokenised before, or not all there."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from debugkit import Finding, warn
from debugkit.data.shares import percent
from debugkit.probes.decoded import Decoded

from ._origin import FEWEST_TOKENS

_MOST_WORDS = 500
_WORD = re.compile(r"\w+")
_PIECES = re.compile(r"\w+(?:[^\S\n]*#[^\S\n]?#[^\S\n]?\w+)+")


def tokenised_before(decoded: Decoded) -> Iterator[Finding]:
    """Marks that tokenizers put at the border of tokens, where they are letters of the text."""
    codec = decoded.codec
    texts = ["\n".join(codec.decode(span) or "" for span in decoded.spans(row)) for row in decoded.rows]
    words = [len(_WORD.findall(text)) for text in texts]
    own = codec.decode(codec.encode("hello world, unbelievable zyxwvuq jkqxz") or ()) or ""
    hits = {mark: [text.count(mark) for text in texts] for mark in ("\u0120", "\u2581")}
    hits["##"] = [len(_PIECES.findall(text)) for text in texts]
    for mark, found in hits.items():
        rows = [row for row, count in zip(decoded.rows, found, strict=True) if count]
        least = 0.3 if mark != "##" else 0.05
        if (
            mark in own
            or sum(words) < FEWEST_TOKENS
            or len(rows) < len(texts) / 2
            or sum(found) < least * sum(words)
        ):
            continue
        if mark == "##" and not _are_pieces(decoded, texts):
            continue
        yield warn(
            f"{len(rows)} of {len(texts)} rows hold the tokenizer mark `{mark}` as text: it was tokenised twice",
            where=f"train[{rows[0].sample}]",
            hint="pass the text itself to the tokenizer, not the output of `tokenizer.tokenize(text)`",
            marks=sum(found),
        )


def _are_pieces(decoded: Decoded, texts: Sequence[str]) -> bool:
    """Whether words with `##` between their parts are what the tokenizer makes of the words without; a heading is not."""
    chains = [re.split(r"\s*#\s?#\s?", chain) for text in texts for chain in _PIECES.findall(text)][
        :_MOST_WORDS
    ]
    same = sum(len(decoded.codec.encode("".join(chain)) or ()) == len(chain) for chain in chains)
    return same > len(chains) / 2


def lossy(decoded: Decoded, max_lost: float) -> Iterator[Finding]:
    """Compare with the text where the batch holds it: which letters and digits are gone?"""
    lost = total = 0
    for row in decoded.rows:
        if row.text is None or len(row.ids) == decoded.longest:
            continue
        kept = "".join(decoded.codec.decode(span) or "" for span in decoded.spans(row))
        before, after = _letters(row.text), _letters(kept)
        lost += sum((before - after).values())
        total += sum(before.values())
    if total >= FEWEST_TOKENS and max_lost < lost / total < 0.5:
        yield warn(
            f"{percent(lost / total)} of the letters and digits of the texts are not in their tokens",
            hint="compare a text with `tokenizer.decode(tokenizer(text).input_ids)`; use a tokenizer that covers it",
            lost=lost / total,
        )


def _letters(text: str) -> Counter[str]:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return Counter(character for character in folded if character.isalnum())
