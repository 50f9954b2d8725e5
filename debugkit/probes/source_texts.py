"""Texts that scanned rows of token ids were made from, where they can still be had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, ClassVar

import numpy as np

from debugkit.data.loaders import whole_item
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.token_ids import TokenIds
from debugkit.target import Target
from debugkit.tokens.codec import Codec

_MOST = 256
_MOST_ITEMS = 96
_FEWEST = 8
_MATCHED = 0.5
_SAME = 0.95
_MOST_FIELDS = 6
_LONGEST = 200_000


@dataclass(frozen=True)
class Encoded:
    """A row beside all that its text would be.

    Attributes:
        row: its number in :class:`TokenIds`.
        kept: how many tokens of the text are in the row.
        whole: how many tokens the text has.
        around: how many special tokens the row has.
        end: whether the beginning is kept, and so the end is cut.
    """

    row: int
    kept: int
    whole: int
    around: int
    end: bool


@dataclass(frozen=True, eq=False)
class SourceTexts:
    """Rows whose text is in the batch, or in the data set behind the loader.

    Attributes:
        rows: those that are recognised as the encoding of their text, whole or in part.
        tried: how many rows had a text.
    """

    cost: ClassVar[Cost] = "data"
    rows: tuple[Encoded, ...] = field(repr=False)
    tried: int

    @staticmethod
    def collect(target: Target, ids: TokenIds) -> SourceTexts:
        """Encode the texts again.

        Raises:
            Unavailable: there is no tokenizer, there are no texts, or the rows are not made from them.
        """
        if ids.codec is None:
            raise Unavailable("the target has no tokenizer; pass `Target(tokenizer=...)`")
        pairs = _in_batch(ids) or [*_in_data_set(target, ids)]
        if not pairs:
            raise Unavailable("the texts that the ids were made from are not in the batches or the data set")
        found = [encoded for row, texts in pairs if (encoded := _encoded(ids, row, texts)) is not None]
        if len(found) < max(_FEWEST, _MATCHED * len(pairs)):
            raise Unavailable(
                "the texts beside the ids, encoded by the tokenizer of the target, do not give them"
            )
        return SourceTexts(tuple(found), len(pairs))

    @property
    def cut(self) -> list[Encoded]:
        """The rows that lack a part of their text."""
        return [row for row in self.rows if row.kept < row.whole]


def _in_batch(ids: TokenIds) -> list[tuple[int, tuple[str, ...]]]:
    columns = [texts for texts in ids.rows.texts.values() if len(texts) == ids.rows.count]
    columns.sort(key=lambda texts: -sum(map(len, texts)))
    if not columns or len(ids.ids) != ids.rows.count:
        return []
    step = max(1, len(ids.ids) // _MOST)
    return [(row, tuple(c[int(ids.samples[row])] for c in columns)) for row in range(0, len(ids.ids), step)]


def _in_data_set(target: Target, ids: TokenIds) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Items of the data set behind the loader, as long as they hold text."""
    dataset, places = getattr(target.train_loader, "dataset", None), ids.rows.indices
    if dataset is None or places is None or not hasattr(dataset, "__getitem__"):
        return
    step = max(1, len(ids.ids) // _MOST_ITEMS)
    for row in range(0, len(ids.ids), step):
        try:
            texts = _texts(whole_item(target, dataset, places[int(ids.samples[row])]))
        except Exception:  # the data set may be read in another way only
            return
        if not texts:
            return
        yield row, texts


def _texts(item: Any) -> tuple[str, ...]:
    if isinstance(item, str):
        return (item,)
    values: Sequence[Any] = ()
    if isinstance(item, Mapping):
        values = list(item.values())
    elif isinstance(item, (tuple, list)):
        values = item
    else:
        values = list(getattr(item, "__dict__", {}).values())
    return tuple(value for value in values if isinstance(value, str))[:_MOST_FIELDS]


def _encoded(ids: TokenIds, row: int, texts: tuple[str, ...]) -> Encoded | None:
    """How much of one text, or of two in a row, the ids hold; ``None`` where they hold none of it."""
    assert ids.codec is not None
    content = ids.ids[row][ids.starts[row] : ids.stops[row]]
    body = [int(index) for index in content if int(index) not in ids.codec.added]
    if not body or any(len(text) > _LONGEST for text in texts):
        return None
    parts = {text: _plain(ids.codec, text) for text in texts}
    candidates = [*((text,) for text in texts), *permutations(texts, 2)]
    for candidate in candidates:
        whole = [index for text in candidate for index in parts[text]]
        if len(whole) < len(body):
            continue
        for end, piece in ((True, whole[: len(body)]), (False, whole[-len(body) :])):
            same = int((np.array(piece) == np.array(body)).sum())
            if same >= _SAME * len(body):
                return Encoded(row, len(body), len(whole), len(content) - len(body), end)
    return None


def _plain(codec: Codec, text: str) -> list[int]:
    return [index for index in codec.encode(text) or () if index not in codec.added]
