"""Words of several pieces, and the tags of their pieces."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from debugkit import Finding, Target, warn
from debugkit.data.class_names import class_names
from debugkit.data.labels import Labels
from debugkit.data.shares import percent
from debugkit.probes.supervision import SupervisedRow, Supervision

Style = Literal["##", "Ġ", "▁"]

_STYLES: tuple[Style, ...] = ("##", "Ġ", "▁")
_USUAL = 0.02
_FEWEST_WORDS = 10
_FEWEST_TAGS = 3
_FEWEST_SPECIAL = 5
_MOST_SPECIAL = 0.1
_CONSISTENT = 0.9
_RARE = 0.02


class Pieces:
    """Tells which ids continue the word of the id before them.

    Args:
        tokenizer: one whose pieces are marked as WordPiece, byte-level BPE or SentencePiece do.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._names = getattr(tokenizer, "convert_ids_to_tokens", None) or getattr(
            tokenizer, "id_to_token", None
        )
        self._style = _style(tokenizer)
        self._known: dict[int, str] = {}

    @property
    def marked(self) -> bool:
        """Whether the tokenizer marks where words begin or go on."""
        return callable(self._names) and self._style is not None

    def name(self, index: int) -> str:
        """The piece as the tokenizer's vocabulary has it."""
        if index not in self._known:
            assert self._names is not None
            name = self._names(index)
            self._known[index] = name if isinstance(name, str) else ""
        return self._known[index]

    def continues(self, before: int, index: int) -> bool:
        """Whether an id goes on with the word of the one before it.

        For marks at the beginning of words this is told from letters and digits alone, since punctuation and scripts
        without spaces follow without a mark too.
        """
        name, last = self.name(index), self.name(before)
        if self._style == "##":
            return name.startswith("##")
        if not name or not last or name.startswith(str(self._style)):
            return False
        return _is_plain(name[0]) and _is_plain(last[-1])

    def words(self, row: SupervisedRow, special: frozenset[int]) -> Iterator[list[int]]:
        """The positions of each word of a row."""
        word: list[int] = []
        for place, token in enumerate(row.tokens):
            if not row.content[place] or token in special:
                if word:
                    yield word
                word = []
            elif word and self.continues(row.tokens[place - 1], token):
                word.append(place)
            else:
                if word:
                    yield word
                word = [place]
        if word:
            yield word


@dataclass(frozen=True)
class _Tagged:
    """The counted labels of a word of several pieces: of its first piece, and of those after it."""

    row: SupervisedRow
    first: int
    rest: tuple[int, ...]


def inside_words(supervision: Supervision, target: Target, labels: Labels, most: float) -> Iterator[Finding]:
    """Tags that change from piece to piece within words.

    Two labels that change at random may be about the pieces themselves, as in replaced token detection.
    """
    pieces = Pieces(getattr(target.tokenizer, "tokenizer", target.tokenizer))
    if supervision.codec is None or not pieces.marked:
        return
    firsts: Counter[int] = Counter()
    words: list[_Tagged] = []
    for row in supervision.every_row():
        for places in pieces.words(row, supervision.codec.added):
            found = [row.labels[p] if row.supervised[p] else None for p in places]
            if found[0] is not None:
                firsts[found[0]] += 1
                if rest := tuple(label for label in found[1:] if label is not None):
                    words.append(_Tagged(row, found[0], rest))
    if not firsts:
        return
    background = firsts.most_common(1)[0][0]
    tagged = [word for word in words if {word.first, *word.rest} != {background}]
    names = class_names(target.model, labels)
    wrong = [word for word in tagged if _breaks(word, tagged, background, firsts, names)]
    if len(tagged) < _FEWEST_WORDS or len(wrong) <= most * len(tagged):
        return
    dropped = [word for word in wrong if word.first != background and set(word.rest) == {background}]
    shown = names.get(background, str(background))
    of_pieces = len({label for word in words for label in (word.first, *word.rest)}) < _FEWEST_TAGS
    if of_pieces and len(dropped) < len(wrong):
        return
    if len(dropped) >= _CONSISTENT * len(wrong):
        said = f"the first piece is tagged and the others are `{shown}`"
    else:
        said = "the tag changes from piece to piece"
    yield warn(
        f"in {len(wrong):,} of {len(tagged):,} tagged words of several pieces ({percent(len(wrong) / len(tagged))}) {said}: "
        "the model learns that words end where their pieces do",
        where=supervision.name(wrong[0].row),
        hint="align tags by `word_ids()`: give pieces after the first -100, or the tag of their word",
        words=len(tagged),
        wrong=len(wrong),
    )


def special_tags(supervision: Supervision, target: Target, labels: Labels) -> Iterator[Finding]:
    """Tags of special tokens that vary, as those of words do."""
    codec = supervision.codec
    if codec is None:
        return
    tags: dict[int, Counter[int]] = defaultdict(Counter)
    every: Counter[int] = Counter()
    where = ""
    for row in supervision.every_row():
        for place, token in enumerate(row.tokens):
            label = row.labels[place]
            if label is None or not row.supervised[place] or not row.content[place]:
                continue
            every[label] += 1
            if token in codec.special and token != codec.roles.get("unk"):
                tags[token][label] += 1
                where = where or supervision.name(row)
    if not every or not tags:
        return
    background = every.most_common(1)[0][0]
    for token, found in tags.items():
        odd = found.total() - found[background]
        if len(found) < 2 or odd < _FEWEST_SPECIAL or odd < _MOST_SPECIAL * found.total():
            continue
        names = class_names(target.model, labels)
        kinds = ", ".join(f"`{names.get(label, label)}`" for label, _ in found.most_common(3))
        yield warn(
            f"{codec.quote((token,))} has tags of words ({kinds}) in {found.total():,} places: labels were made for words "
            "and stand beside the wrong tokens",
            where=where,
            hint="align tags by `word_ids()`, which gives special tokens `None`: label those -100",
            places=found.total(),
        )
        return


def _breaks(
    word: _Tagged, words: Sequence[_Tagged], background: int, firsts: Counter[int], names: Mapping[int, str]
) -> bool:
    """Whether the tags of a word's pieces contradict each other."""
    for label in word.rest:
        if label == word.first or _same_entity(names.get(word.first), names.get(label)):
            continue
        if firsts[label] <= _RARE * firsts.total() and label != background and word.first != background:
            if _is_tag_of(label, word.first, words):
                continue
        elif background not in (label, word.first) and _is_tag_of(label, word.first, words):
            continue
        return True
    return False


def _is_tag_of(label: int, first: int, words: Sequence[_Tagged]) -> bool:
    """Whether pieces after one tag nearly always have a certain other one, as I- comes after B-."""
    after = Counter(other for word in words if word.first == first for other in word.rest if other != first)
    return after[label] >= _CONSISTENT * after.total()


def _same_entity(one: str | None, other: str | None) -> bool:
    """Whether two names say the same but for a prefix such as ``B-`` and ``I-``."""
    if one is None or other is None:
        return False
    first, second = one.partition("-"), other.partition("-")
    return bool(first[1]) and bool(second[1]) and first[2] == second[2] and bool(first[2])


def _style(tokenizer: Any) -> Style | None:
    table = getattr(tokenizer, "get_vocab", dict)
    try:
        vocabulary = [name for name in table() if isinstance(name, str)]
    except Exception:  # a foreign tokenizer may refuse in any way
        return None
    shares = {style: sum(name.startswith(style) for name in vocabulary) for style in _STYLES}
    best = max(_STYLES, key=lambda style: shares[style])
    return best if vocabulary and shares[best] >= _USUAL * len(vocabulary) else None


def _is_plain(letter: str) -> bool:
    return letter.isascii() and letter.isalnum()
