"""What cheap features are read off a column: its numbers, its categories, its bags of terms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from debugkit.data.bags import VIEWS, Bag
from debugkit.data.batch import LABEL_KEYS
from debugkit.data.rows import Column, Rows

Array = np.ndarray[Any, Any]
Kind = Literal["number", "statistic", "category", "token", "pair", "place"]
Ids = Callable[[Rows], list[Array] | None]

_WIDEST = 576
_FEW_NUMBERS = 64
_MOST_CATEGORIES = 32
_LONGEST_TEXT = 512
_MOST_WORDS = 20_000
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Feature:
    """What one column of a feature matrix stands for.

    Attributes:
        path: the key of the batches that it was read from.
        kind: a ``number`` as given, a ``statistic`` over several, one ``category``, a ``token`` or word anywhere,
            a ``pair`` of neighbours, a token at one ``place``.
        index: of a number, its index in the flattened sample.
        term: of the others, the category, the token ids or the words.
        place: of a token at one place, its position; from the end where negative.
    """

    path: str
    kind: Kind
    index: int | None = None
    term: tuple[int | str, ...] = ()
    place: int | None = None

    def __str__(self) -> str:
        shown = " ".join(map(str, self.term)).replace("`", "'")
        if self.kind == "number":
            return f"`{self.path}`, value {self.index}" if self.index is not None else f"`{self.path}`"
        if self.kind == "statistic":
            return f"an average of `{self.path}`"
        if self.kind == "category":
            return f"`{self.path}` == {shown}"
        what = "word" if self.term and isinstance(self.term[0], str) else "token"
        end = "from the end " if (self.place or 0) < 0 else ""
        at = f" at position {abs(self.place)} {end}of" if self.place is not None else " in"
        return f"{what}{'s' if self.kind == 'pair' else ''} `{shown}`{at} `{self.path}`"


@dataclass(frozen=True, eq=False)
class Block:
    """Some columns: what they are, and how they are read off rows (``[n, k]`` float32)."""

    columns: Sequence[Feature]
    read: Callable[[Rows], Array | None]
    bag: bool = False


def is_mask(path: str) -> bool:
    """Whether a key holds a mask or positions, by its name."""
    name = path.rpartition(".")[2]
    return name.endswith("mask") or name == "position_ids"


def is_single(column: Column) -> bool:
    """Whether there is one number per sample."""
    return all(shape in ((), (1,)) for shape in column.shapes)


def is_tokens(column: Column) -> bool:
    """Whether each sample is a row of whole numbers, such as token ids."""
    wide = column.dtype in (torch.int64, torch.int32, torch.int16)
    return wide and all(len(shape) == 1 and shape != (1,) for shape in column.shapes)


def is_running_number(column: Column) -> bool:
    """Whether it only tells samples apart: a different whole number for each."""
    return (
        is_single(column) and not column.is_floating and len(set(column.digests)) == len(column.digests) > 2
    )


def token_rows(rows: Rows, column: Column) -> list[Array]:
    """Per sample the ids that its mask counts, where the rows have one of their shape."""
    masks = [other for path, other in rows.columns.items() if path.endswith("attention_mask")]
    mask = next((m for m in masks if m.shapes == column.shapes and m.samples == column.samples), None)
    if mask is None:
        return [value.numpy()[:_LONGEST_TEXT] for value in column.values]
    pairs = zip(column.values, mask.values, strict=True)
    return [value.numpy()[counts.numpy() != 0][:_LONGEST_TEXT] for value, counts in pairs]


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text in lower case."""
    return _WORD.findall(text.lower())[:_LONGEST_TEXT]


def blocks_of(rows: Rows) -> Iterator[Block]:
    inputs = [c for c in rows.inputs if len(c.samples) == rows.count and not is_mask(c.path)]
    inputs = [
        column for column in inputs if not is_running_number(column) and not _is_named_label(column.path)
    ]
    for column in inputs:
        if is_tokens(column):
            yield from _bag_blocks(column.path, rows, _ids_reader(column.path))
        wide = column.stacked() is not None and max(column.values[0].numel(), 1) > _FEW_NUMBERS
        if not (is_tokens(column) and (wide or len(column.shapes) > 1)):
            yield _number_block(column, _WIDEST // len(inputs))
        if is_single(column) and not column.is_floating:
            yield from _category_blocks(column)
    if not any(is_tokens(column) for column in inputs):
        for path, texts in rows.texts.items():
            if len(texts) == rows.count and path not in rows.label_texts and (not inputs or _is_prose(texts)):
                names = _vocabulary(texts)
                yield from _bag_blocks(path, rows, _words_reader(path, names), names)


def _is_named_label(path: str) -> bool:
    """Whether a key beside the labels has a name of labels too: it is rarely meant for the model."""
    return path.rpartition(".")[2] in LABEL_KEYS


def _is_prose(texts: Sequence[str]) -> bool:
    return sum(" " in text.strip() for text in texts) > len(texts) / 2


def _category_blocks(column: Column) -> Iterator[Block]:
    distinct = sorted({int(value) for value in column.values})
    if not 2 < len(distinct) <= _MOST_CATEGORIES:
        return

    def read(rows: Rows) -> Array | None:
        found = rows.columns.get(column.path)
        if found is None or not is_single(found) or len(found.values) != rows.count:
            return None
        values = np.array([int(value) for value in found.values])
        return np.asarray(values[:, None] == np.array(distinct), dtype=np.float32)

    yield Block([Feature(column.path, "category", term=(value,)) for value in distinct], read)


def _number_block(column: Column, room: int) -> Block:
    stacked = column.stacked()
    shape = None if stacked is None else tuple(stacked.shape[1:])

    def read(rows: Rows) -> Array | None:
        found = rows.columns.get(column.path)
        if found is None:
            return None
        if shape is None:
            stats = np.stack([found.minimum, found.maximum, found.mean, found.std], 1)
            return np.asarray(np.nan_to_num(stats), dtype=np.float32)
        values = found.stacked()
        if values is None or tuple(values.shape[1:]) != shape:
            return None
        return np.asarray(_narrowed(values, room).nan_to_num(0.0, 0.0, 0.0).clamp(-1e15, 1e15))

    if stacked is None:
        return Block([Feature(column.path, "statistic")] * 4, read)
    if not stacked.numel():
        return Block([], read)
    width = _narrowed(stacked[:1], room).shape[1]
    if width == stacked[0].numel() and not column.reduced:
        single = width == 1
        return Block([Feature(column.path, "number", None if single else i) for i in range(width)], read)
    return Block([Feature(column.path, "statistic")] * width, read)


def _narrowed(values: torch.Tensor, room: int) -> torch.Tensor:
    """``[n, at most about room]`` float32: averages over neighbours, or sums with random signs of what has none."""
    values = values.float()
    n, width = len(values), values[0].numel()
    if width <= room:
        return values.reshape(n, -1)
    if values.ndim >= 4:
        planes = values.reshape(n, -1, *values.shape[-2:])[:, :64]
        side = max(2, int((room / planes.shape[1]) ** 0.5))
        return F.adaptive_avg_pool2d(planes, side).reshape(n, -1)
    if values.ndim == 3:
        ratio = (room / width) ** 0.5
        sides = (max(1, int(values.shape[1] * ratio)), max(1, int(values.shape[2] * ratio)))
        return F.adaptive_avg_pool2d(values.unsqueeze(1), sides).reshape(n, -1)
    generator = torch.Generator().manual_seed(0)
    bucket = torch.randint(room, (width,), generator=generator)
    sign = torch.randint(2, (width,), generator=generator) * 2.0 - 1
    return torch.zeros(n, room).index_add_(1, bucket, values.reshape(n, -1) * sign)


def _ids_reader(path: str) -> Ids:
    def read(rows: Rows) -> list[Array] | None:
        found = rows.columns.get(path)
        return None if found is None or not is_tokens(found) else token_rows(rows, found)

    return read


def _vocabulary(texts: Sequence[str]) -> list[str]:
    counts = Counter(word for text in texts for word in set(words(text)))
    return [word for word, _ in counts.most_common(_MOST_WORDS)]


def _words_reader(path: str, names: Sequence[str]) -> Ids:
    table = {word: number for number, word in enumerate(names)}

    def read(rows: Rows) -> list[Array] | None:
        texts = rows.texts.get(path)
        if texts is None or len(texts) != rows.count:
            return None
        return [np.array([table.get(word, -1) for word in words(text)], dtype=np.int64) for text in texts]

    return read


def _bag_blocks(path: str, rows: Rows, ids: Ids, names: Sequence[str] = ()) -> Iterator[Block]:
    found = ids(rows)
    if found is None or len(found) != rows.count:
        return
    for view in VIEWS:
        bag = Bag.of(found, view)
        columns = [
            Feature(path, view, term=tuple(names[i] if names and i >= 0 else i for i in term), place=place)
            for term, place in bag.terms()
        ]
        yield Block(columns, _bag_reader(bag, ids), bag=True)


def _bag_reader(bag: Bag, ids: Ids) -> Callable[[Rows], Array | None]:
    def read(rows: Rows) -> Array | None:
        found = ids(rows)
        return None if found is None else bag.matrix(found)

    return read
