"""How much of a row of tokens other rows foretell: the phrases of theirs that it can be put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_SURROGATES = 0xD800


class Phrases:
    """A collection of rows to look phrases up in.

    Args:
        rows: per row its codes ``[length]`` int64, no two rows alike.

    Attributes:
        bits: what it takes to name a place in the collection.

    References:
        Ziv, Merhav 1993, https://doi.org/10.1109/18.243444 (cross-parsing)
    """

    def __init__(self, rows: Sequence[Array]) -> None:
        codes = np.unique(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
        self._letters = {code: _letter(number) for number, code in enumerate(codes.tolist(), 1)}
        texts = [self._text(row) for row in rows]
        self._starts = np.cumsum([0, *(len(text) + 1 for text in texts)]).tolist()
        self._text_of_all = "\0".join(texts)
        self.bits = float(np.log2(max(len(self._text_of_all), 2)))

    def count(self, row: Array, number: int | None, most: int) -> int:
        """How many phrases of other rows a row is made of.

        Args:
            row: its codes.
            number: its number in the collection, if it is there; it does not foretell itself.
            most: where to stop counting.
        """
        text = self._text(row)
        own = None if number is None else (self._starts[number], self._starts[number] + len(text))
        start = found = 0
        while start < len(text) and found < most:
            known, unknown = 0, len(text) - start + 1
            while unknown - known > 1:
                middle = (known + unknown) // 2
                if self._occurs(text[start : start + middle], own):
                    known = middle
                else:
                    unknown = middle
            start += max(known, 1)
            found += 1
        return found

    def _text(self, row: Array) -> str:
        return "".join(self._letters.get(code, "\1") for code in row.tolist())

    def _occurs(self, phrase: str, own: tuple[int, int] | None) -> bool:
        place = self._text_of_all.find(phrase)
        if own is not None and own[0] <= place < own[1]:
            place = self._text_of_all.find(phrase, own[1])
        return place >= 0


def _letter(number: int) -> str:
    return chr(number + 1 if number + 1 < _SURROGATES else number + 0x801)
