"""The token ids of all scanned samples, with their padding and their mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from debugkit.codec import Codec
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.samples import Samples
from debugkit.rows import Column, Rows
from debugkit.target import Target

Side = Literal["left", "right", "both"]

_OTHER_MASKS = ("special", "loss", "assistant", "completion", "label", "global", "image", "pixel", "mlm")
_FEWEST_ROWS = 3
_PADDED = 0.05
_RARE = 0.02


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
    ids: Sequence[np.ndarray[Any, Any]] = field(repr=False)
    samples: np.ndarray[Any, Any] = field(repr=False)
    batches: np.ndarray[Any, Any] = field(repr=False)
    pad: int | None
    certain: bool
    starts: np.ndarray[Any, Any] = field(repr=False)
    stops: np.ndarray[Any, Any] = field(repr=False)
    mask: str | None
    seen: Sequence[np.ndarray[Any, Any]] = field(repr=False)
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
        pad, certain = _padding(ids, masks, codec)
        starts, stops = _content(ids, pad)
        inverted = False
        if named is None and pad is not None:
            named, inverted = _unnamed_mask(rows, column, starts, stops)
            masks = _flattened(named)[0] if named is not None else ()
        elif named is not None and named.path.rpartition(".")[2] != "attention_mask" and pad is not None:
            inverted = _marks_padding(masks, starts, stops)
        seen = [(row == 0) if inverted else (row != 0) for row in masks]
        if pad is None:
            starts, stops = _by_mask(starts, stops, seen)
        elif not certain:
            starts, stops = _with_one_pad(ids, starts, stops, seen)
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
    def widths(self) -> np.ndarray[Any, Any]:
        """``[rows]``: length with padding."""
        return np.array([len(row) for row in self.ids], int)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """``[rows]``: length without padding."""
        found: np.ndarray[Any, Any] = self.stops - self.starts
        return found

    @property
    def padded(self) -> np.ndarray[Any, Any]:
        """``[rows]``: whether a row has padding."""
        found: np.ndarray[Any, Any] = self.lengths < self.widths
        return found

    @cached_property
    def uncovered(self) -> np.ndarray[Any, Any]:
        """``[rows]``: how many places of padding the mask counts as content."""
        return np.array([int((row & ~_range(len(row), a, b)).sum()) for row, a, b in self._masked()], int)

    @cached_property
    def hidden(self) -> np.ndarray[Any, Any]:
        """``[rows]``: how many places of content the mask leaves out."""
        return np.array([int((~row & _range(len(row), a, b)).sum()) for row, a, b in self._masked()], int)

    def _masked(self) -> Iterator[tuple[np.ndarray[Any, Any], int, int]]:
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


def _flattened(column: Column) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
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


def _unnamed_mask(
    rows: Rows, ids: Column, starts: np.ndarray[Any, Any], stops: np.ndarray[Any, Any]
) -> tuple[Column | None, bool]:
    """A column of a tuple that marks exactly the content, or the padding, or everything."""
    ones = None
    for column in _beside(rows, ids):
        if not column.path.startswith("["):
            continue
        marked = _flattened(column)[0]
        content = [_range(len(row), a, b) for row, a, b in zip(marked, starts, stops, strict=True)]
        if all(np.array_equal(row != 0, one) for row, one in zip(marked, content, strict=True)):
            return column, False
        if all(np.array_equal(row == 0, one) for row, one in zip(marked, content, strict=True)):
            return column, True
        if all(bool(row.all()) for row in marked):
            ones = column
    return ones, False


def _marks_padding(
    masks: Sequence[np.ndarray[Any, Any]], starts: np.ndarray[Any, Any], stops: np.ndarray[Any, Any]
) -> bool:
    """Whether a mask is 1 at more places of padding than of content."""
    content = [_range(len(row), a, b) for row, a, b in zip(masks, starts, stops, strict=True)]
    agree = sum(int(((row != 0) == one).sum()) for row, one in zip(masks, content, strict=True))
    return 2 * agree < sum(map(len, masks))


def _range(width: int, start: int, stop: int) -> np.ndarray[Any, Any]:
    places = np.arange(width)
    found: np.ndarray[Any, Any] = (places >= start) & (places < stop)
    return found


def _padding(
    ids: Sequence[np.ndarray[Any, Any]], masks: Sequence[np.ndarray[Any, Any]], codec: Codec | None
) -> tuple[int | None, bool]:
    """The id of padding, and whether it stands for nothing else."""
    own = codec.roles.get("pad") if codec is not None else None
    shared = set()
    if codec is not None:
        shared = {i for role, i in codec.roles.items() if role != "pad"} | codec.habits().special
    if own is not None and _runs(ids, own) >= 1:
        return own, own not in shared and _inside(ids, own) <= _RARE
    for value in dict.fromkeys([*_masked_out(ids, masks), *_edges(ids)]):
        if value != own and _runs(ids, value) >= 2 and _inside(ids, value) <= _RARE:
            return value, value not in shared
    return None, False


def _masked_out(ids: Sequence[np.ndarray[Any, Any]], masks: Sequence[np.ndarray[Any, Any]]) -> Iterator[int]:
    """The one id at all places that a mask leaves out, or at all that it does not."""
    for kept in (0, 1):
        found = {int(i) for row, mask in zip(ids, masks, strict=False) for i in np.unique(row[mask == kept])}
        if len(found) == 1:
            yield found.pop()


def _edges(ids: Sequence[np.ndarray[Any, Any]]) -> Iterator[int]:
    """Ids that stand at the end, or at the beginning, of several rows at least twice in a row."""
    for edge, next_to_it in ((-1, -2), (0, 1)):
        twice = Counter(
            int(row[edge]) for row in ids if len(row) > 1 and row[edge] == row[next_to_it]
        ).most_common(1)
        if twice and twice[0][1] >= max(_FEWEST_ROWS, _PADDED * len(ids)):
            yield twice[0][0]


def _content(
    ids: Sequence[np.ndarray[Any, Any]], pad: int | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where the content of each row begins and ends."""
    starts, stops = np.zeros(len(ids), int), np.array([len(row) for row in ids], int)
    if pad is None:
        return starts, stops
    for number, row in enumerate(ids):
        places = np.flatnonzero(row != pad)
        starts[number], stops[number] = (places[0], places[-1] + 1) if len(places) else (0, 0)
    return starts, stops


def _by_mask(
    starts: np.ndarray[Any, Any], stops: np.ndarray[Any, Any], seen: Sequence[np.ndarray[Any, Any]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What a mask counts as content, where that is one stretch in every row."""
    spans = [_stretch(mask) for mask in seen]
    if not spans or any(span is None for span in spans):
        return starts, stops
    found = np.array([span for span in spans if span is not None], int)
    return found[:, 0], found[:, 1]


def _stretch(mask: np.ndarray[Any, Any]) -> tuple[int, int] | None:
    places = np.flatnonzero(mask)
    whole = len(places) > 0 and places[-1] - places[0] + 1 == len(places)
    return (int(places[0]), int(places[-1]) + 1) if whole else None


def _with_one_pad(
    ids: Sequence[np.ndarray[Any, Any]],
    starts: np.ndarray[Any, Any],
    stops: np.ndarray[Any, Any],
    seen: Sequence[np.ndarray[Any, Any]],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The content with one id of the padding at each end, or as the mask has it where that is about the same."""
    widths = np.array([len(row) for row in ids])
    low, high = np.maximum(starts - 1, 0), np.minimum(stops + 1, widths)
    for row, mask in enumerate(seen):
        if (span := _stretch(mask)) is None:
            continue
        first, last = span
        if low[row] <= first <= starts[row] and stops[row] <= last <= high[row]:
            low[row], high[row] = first, last
    return low, high


def _runs(ids: Sequence[np.ndarray[Any, Any]], value: int) -> int:
    """How many different lengths the runs of an id at the edges of rows have."""
    starts, stops = _content(ids, value)
    runs = starts + np.array([len(row) for row in ids]) - stops
    lengths = Counter(runs[runs > 0].tolist())
    return len(lengths)


def _inside(ids: Sequence[np.ndarray[Any, Any]], value: int) -> float:
    """In which share of the rows an id stands within the content; masked language models put in random ids."""
    starts, stops = _content(ids, value)
    inside = sum(bool((row[a:b] == value).any()) for row, a, b in zip(ids, starts, stops, strict=True))
    return inside / max(len(ids), 1)
