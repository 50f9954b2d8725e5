"""The token ids of all scanned samples, with their padding and their mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch

from debugkit.data.rows import Column, Rows
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.samples import Samples
from debugkit.target import Target
from debugkit.tokens.codec import Codec
from debugkit.tokens.id_padding import Array, by_mask, content_of, padding_of, places_between, with_one_pad

Side = Literal["left", "right", "both"]

_OTHER_MASKS = ("special", "loss", "assistant", "completion", "label", "global", "image", "pixel", "mlm")


@dataclass(frozen=True, eq=False)
class TokenIds:
    """One column of token ids over all scanned samples.

    Attributes:
        path: where the ids are in a batch.
        ids: one array ``[length]`` per row; a sample with several rows (choices) gives several.
        samples: the sample of each row, in scan order.
        batches: the batch of each row.
        pad: the id of padding; ``None`` where there is none, or it can't be told.
        certain: whether the padding id stands for nothing else.
        starts: per row, where its content begins. A padding id that stands for something else too, such as the
            end of a text, belongs to the content once, unless the mask says otherwise.
        stops: per row, where its content ends.
        mask: where the mask of the batch is; ``None`` without one.
        seen: per row, which places the mask counts as content; empty without a mask.
        inverted: whether the mask is 1 on padding, which some modules ask for.
        rows: all columns.
        codec: the tokenizer.
    """

    cost: ClassVar[Cost] = "data"
    path: str
    ids: Sequence[Array] = field(repr=False)
    samples: Array = field(repr=False)
    batches: Array = field(repr=False)
    pad: int | None
    certain: bool
    starts: Array = field(repr=False)
    stops: Array = field(repr=False)
    mask: str | None
    seen: Sequence[Array] = field(repr=False)
    inverted: bool
    rows: Rows = field(repr=False)
    codec: Codec | None = field(repr=False)

    @staticmethod
    def collect(target: Target, samples: Samples) -> TokenIds:
        """Find the ids, their mask and their padding among the scanned samples.

        Raises:
            Unavailable: there are no token ids.
        """
        rows = samples.rows
        column = _ids_column(rows)
        if column is None:
            raise Unavailable(
                "the batches hold no token ids; a mapping needs `input_ids`, a tuple an integer matrix"
            )
        tokenizer = target.tokenizer
        codec = None if tokenizer is None else Codec(getattr(tokenizer, "tokenizer", tokenizer))
        ids, numbers = _flattened(column)
        named = _named_mask(rows, column)
        masks = _flattened(named)[0] if named is not None else ()
        pad, certain = padding_of(ids, masks, codec)
        starts, stops = content_of(ids, pad)
        inverted = False
        if named is None and pad is not None:
            named, inverted = _unnamed_mask(rows, column, starts, stops)
            masks = _flattened(named)[0] if named is not None else ()
        elif named is not None and named.path.rpartition(".")[2] != "attention_mask" and pad is not None:
            inverted = _marks_padding(masks, starts, stops)
        seen = [(row == 0) if inverted else (row != 0) for row in masks]
        if pad is None:
            starts, stops = by_mask(starts, stops, seen)
        elif not certain:
            starts, stops = with_one_pad(ids, starts, stops, seen)
        return TokenIds(
            path=column.path,
            ids=ids,
            samples=numbers,
            batches=np.repeat(np.arange(len(rows.batch_sizes)), rows.batch_sizes)[numbers],
            pad=pad,
            certain=certain,
            starts=starts,
            stops=stops,
            mask=None if named is None else named.path,
            seen=seen,
            inverted=inverted,
            rows=rows,
            codec=codec,
        )

    @property
    def widths(self) -> Array:
        """``[rows]``: length with padding."""
        return np.array([len(row) for row in self.ids], int)

    @property
    def lengths(self) -> Array:
        """``[rows]``: length without padding."""
        found: Array = self.stops - self.starts
        return found

    @property
    def padded(self) -> Array:
        """``[rows]``: whether a row has padding."""
        found: Array = self.lengths < self.widths
        return found

    @cached_property
    def uncovered(self) -> Array:
        """``[rows]``: how many places of padding the mask counts as content."""
        return np.array(
            [int((row & ~places_between(len(row), a, b)).sum()) for row, a, b in self._masked()], int
        )

    @cached_property
    def hidden(self) -> Array:
        """``[rows]``: how many places of content the mask leaves out."""
        return np.array(
            [int((~row & places_between(len(row), a, b)).sum()) for row, a, b in self._masked()], int
        )

    def _masked(self) -> Iterator[tuple[Array, int, int]]:
        everything = [np.array([], dtype=bool)] * len(self.ids)
        return zip(self.seen or everything, self.starts, self.stops, strict=True)

    @property
    def side(self) -> Side | None:
        """Where padding stands; ``None`` without any."""
        left, right = bool((self.starts > 0).any()), bool((self.stops < self.widths).any())
        if not (left or right):
            return None
        if left and right:
            return "both"
        return "left" if left else "right"

    def name(self, row: int) -> str:
        """How findings call a row, such as ``train[17].input_ids``."""
        return self.rows.name(int(self.samples[row]), self.path)


def _ids_column(rows: Rows) -> Column | None:
    """The column called ``input_ids``, or the integer rows with the largest ids among the inputs."""
    columns = [
        c
        for c in rows.inputs
        if c.values
        and not c.reduced
        and c.dtype in (torch.int64, torch.int32, torch.int16)
        and all(len(shape) == 1 and shape[0] > 0 for shape in c.shapes)
        and max(shape[0] for shape in c.shapes) > 1
    ]
    for column in rows.inputs:
        shaped = all(len(shape) in (1, 2) and 0 not in shape for shape in column.shapes)
        whole = not column.is_floating and not column.reduced and column.dtype != torch.bool
        whole &= bool(column.values)
        if column.path.rpartition(".")[2] == "input_ids" and shaped and whole:
            return column
    columns = [c for c in columns if np.nanmax(c.maximum) > 1 and not _is_counting(c)]
    return max(columns, key=lambda c: float(np.nanmax(c.maximum)), default=None)


def _is_counting(column: Column) -> bool:
    return all(
        bool(torch.equal(value, torch.arange(len(value), dtype=value.dtype))) for value in column.values[:16]
    )


def _flattened(column: Column) -> tuple[list[Array], Array]:
    """The rows of a column, and the sample of each."""
    found, numbers = [], []
    for value, sample in zip(column.values, column.samples, strict=True):
        for row in value.reshape(-1, value.shape[-1]):
            found.append(row.numpy())
            numbers.append(sample)
    return found, np.array(numbers)


def _is_binary(column: Column) -> bool:
    if not np.isfinite(column.minimum).all():
        return False
    low, high = float(np.nanmin(column.minimum)), float(np.nanmax(column.maximum))
    return low >= 0 and high == 1 and not (column.is_floating and not _whole(column))


def _whole(column: Column) -> bool:
    return all(bool((value == value.round()).all()) for value in column.values[:16])


def _beside(rows: Rows, ids: Column) -> Iterator[Column]:
    """Columns of zeros and ones with the shape of the ids."""
    for column in rows.inputs:
        same = column.path != ids.path and not column.reduced and column.shapes == ids.shapes
        if same and len(column.values) == len(ids.values) and _is_binary(column):
            yield column


def _named_mask(rows: Rows, ids: Column) -> Column | None:
    found = {column.path.rpartition(".")[2]: column for column in _beside(rows, ids)}
    if "attention_mask" in found:
        return found["attention_mask"]
    for name, column in found.items():
        if "mask" in name and not any(other in name for other in _OTHER_MASKS):
            return column
    return None


def _unnamed_mask(rows: Rows, ids: Column, starts: Array, stops: Array) -> tuple[Column | None, bool]:
    """A column of a tuple that marks exactly the content, or the padding, or everything."""
    ones = None
    for column in _beside(rows, ids):
        if not column.path.startswith("["):
            continue
        marked = _flattened(column)[0]
        content = [places_between(len(row), a, b) for row, a, b in zip(marked, starts, stops, strict=True)]
        if all(np.array_equal(row != 0, one) for row, one in zip(marked, content, strict=True)):
            return column, False
        if all(np.array_equal(row == 0, one) for row, one in zip(marked, content, strict=True)):
            return column, True
        if all(bool(row.all()) for row in marked):
            ones = column
    return ones, False


def _marks_padding(masks: Sequence[Array], starts: Array, stops: Array) -> bool:
    """Whether a mask is 1 at more places of padding than of content."""
    content = [places_between(len(row), a, b) for row, a, b in zip(masks, starts, stops, strict=True)]
    agree = sum(int(((row != 0) == one).sum()) for row, one in zip(masks, content, strict=True))
    return 2 * agree < sum(map(len, masks))
