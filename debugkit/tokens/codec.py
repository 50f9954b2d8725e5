"""A tokenizer of any make: text to ids and back, and what it adds on its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Habits:
    """What a tokenizer adds around text, learned by encoding some.

    Attributes:
        prefix: ids before a text.
        suffix: ids after a text.
        middle: ids between the two texts of a pair; empty where it takes no pairs.
        pair_types: whether it marks the second text of a pair by token types other than 0.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    middle: tuple[int, ...] = ()
    pair_types: bool = False

    @property
    def special(self) -> frozenset[int]:
        """All ids that it adds."""
        return frozenset(self.prefix + self.suffix + self.middle)


class Codec:
    """Encodes and decodes with transformers' tokenizers, ``tokenizers.Tokenizer``, and anything like them.

    Args:
        tokenizer: an object with ``encode`` and ``decode``.

    Attributes:
        roles: ids by role (``bos``, ``eos``, ``unk``, ``pad``, ...), those that exist.
        special: ids of special tokens.
        added: ids of tokens that were added beside the learned vocabulary, special ones included
            (but no single bytes such as `<0x0A>`, which stand for text).
        size: one more than the largest id; ``None`` where the tokenizer does not say.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.roles = {
            role: index
            for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")
            if (index := _integer(getattr(tokenizer, f"{role}_token_id", None))) is not None
        }
        table = _added_tokens(tokenizer)
        marked = {index for index, token in table.items() if getattr(token, "special", False)}
        letters = {index for index, token in table.items() if _BYTE.fullmatch(str(token))}
        special = {*_integers(getattr(tokenizer, "all_special_ids", ())), *marked, *self.roles.values()}
        self.special = frozenset(special - letters)
        self.added = frozenset((special | set(table)) - letters)
        self.size = _size(tokenizer, self.added)
        self._blank: dict[int, bool] = {}

    def knows(self, index: int) -> bool:
        """Whether the tokenizer can have such an id."""
        return index >= 0 and (self.size is None or index < self.size)

    def is_blank(self, index: int) -> bool:
        """Whether an id stands for nothing but white space."""
        if index not in self._blank:
            text = None if index in self.added else self.decode((index,))
            self._blank[index] = text is not None and not text.strip()
        return self._blank[index]

    def encode(self, text: str, *, special: bool = False) -> list[int] | None:
        """Token ids of a text, with what the tokenizer adds or without; ``None`` where it can't say."""
        encode = getattr(self._tokenizer, "encode", None)
        if not callable(encode):
            return None
        ids = _first(
            lambda: encode(text, add_special_tokens=special, verbose=False),
            lambda: encode(text, add_special_tokens=special),
            lambda: encode(text),
        )
        return _id_list(ids)

    def decode(self, ids: Sequence[int]) -> str | None:
        """The text of token ids, special tokens included; ``None`` where the tokenizer can't say."""
        decode = getattr(self._tokenizer, "decode", None)
        if not callable(decode):
            return None
        given = list(ids)
        text = _first(
            lambda: decode(given, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            lambda: decode(given, skip_special_tokens=False),
            lambda: decode(given),
        )
        return text if isinstance(text, str) else None

    def quote(self, ids: Sequence[int]) -> str:
        """The text of token ids as an identifier for a message; the numbers where there is no text."""
        return f"`{excerpt(self.decode(ids) or ' '.join(map(str, ids))).replace('`', chr(39))}`"

    def recovered(self, spans: Sequence[tuple[int, ...]]) -> tuple[float | None, list[tuple[int, ...]]]:
        """Decode stretches of text and encode them again.

        Returns:
            The share of ids that come back, in any order, and what came back; ``(None, [])`` where the tokenizer
            can't say.
        """
        back = []
        for span in spans:
            text = self.decode(span)
            again = self.encode(text) if text is not None else None
            if again is None:
                return None, []
            back.append(tuple(again))
        same = sum(sum((Counter(one) & Counter(two)).values()) for one, two in zip(spans, back, strict=True))
        return (same / total if (total := sum(map(len, spans))) else None), back

    @property
    def reads_anything(self) -> bool:
        """Whether the tokenizer falls back on bytes, so that an unknown token stands in the text itself."""
        ids = self.encode("\u2603 \U0001f680 \ua66e \u732b \u0ca0 \u1300")
        return ids is not None and bool(ids) and self.roles.get("unk") not in ids

    def habits(self, texts: Iterable[str] = ()) -> Habits:
        """What the tokenizer adds around text, learned from the first text that it encodes to something."""
        for text in (*texts, "hello world", "a"):
            bare, full = self.encode(text), self.encode(text, special=True)
            if not bare or not full or (place := _find(full, bare)) is None:
                continue
            prefix, suffix = tuple(full[:place]), tuple(full[place + len(bare) :])
            middle, types = self._pair(text, bare, len(prefix), len(suffix))
            return Habits(prefix, suffix, middle, types)
        return Habits()

    def _pair(self, text: str, bare: list[int], before: int, after: int) -> tuple[tuple[int, ...], bool]:
        if not callable(self._tokenizer):
            return (), False
        pair = _first(
            lambda: self._tokenizer(text, text, return_token_type_ids=True),
            lambda: self._tokenizer(text, text),
        )
        ids = _id_list(pair.get("input_ids")) if isinstance(pair, Mapping) else None
        if not ids or len(ids) < before + after + 2 * len(bare):
            return (), False
        middle = ids[before + len(bare) : len(ids) - after - len(bare)]
        types = _id_list(pair.get("token_type_ids")) or []
        return tuple(middle), any(types)


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text on one line, control and invisible characters written out."""
    line = " ".join(text[: 4 * length].split())
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in line
    )
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _first(*attempts: Callable[[], Any]) -> Any:
    """The result of the first attempt that does not raise."""
    for attempt in attempts:
        try:
            return attempt()
        except Exception:  # a foreign tokenizer may refuse in any way
            continue
    return None


def _find(whole: list[int], part: list[int]) -> int | None:
    starts = range(len(whole) - len(part) + 1)
    return next((start for start in starts if whole[start : start + len(part)] == part), None)


def _id_list(ids: Any) -> list[int] | None:
    ids = getattr(ids, "ids", ids)
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if not isinstance(ids, (list, tuple)) or any(_integer(index) is None for index in ids):
        return None
    return [int(index) for index in ids]


def _integers(values: Any) -> list[int]:
    if not isinstance(values, (list, tuple, set, frozenset)):
        return []
    return [int(value) for value in values if _integer(value) is not None]


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _added_tokens(tokenizer: Any) -> dict[int, Any]:
    table = getattr(tokenizer, "added_tokens_decoder", None)
    if table is None:
        table = _first(lambda: tokenizer.get_added_tokens_decoder())
    return dict(table) if isinstance(table, Mapping) else {}


def _size(tokenizer: Any, added: Iterable[int]) -> int | None:
    table = _first(lambda: tokenizer.get_vocab())
    ids = _integers(list(table.values())) if isinstance(table, Mapping) else []
    return max((*ids, *added)) + 1 if ids else _integer(getattr(tokenizer, "n_vocab", None))
