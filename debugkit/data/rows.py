"""The samples that were scanned, key by key: compact values, per-sample statistics and content digests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from debugkit.data.columns import columns_of

Split = Literal["train", "eval"]

LARGEST_ROW = 2**14
"""Values per sample and key up to which a row is kept in full; larger ones are thinned out."""

_REDUCED_SIDE = 32
_KEPT_BYTES = 2**28
_MASK = "attention_mask"
_PADDED = 0.25


@dataclass(frozen=True, eq=False)
class Column:
    """One key of the batches over all scanned samples.

    Attributes:
        path: its place in a batch, such as ``input_ids``, ``[0]`` or ``[1][].boxes``; ``""`` for a bare tensor.
        is_label: whether it is (part of) the labels, by the batch's shape.
        dtype: of the tensors.
        values: per sample a CPU tensor; thinned out (every k-th value of each dimension) where ``reduced``.
        reduced: whether some rows are too large to be kept in full.
        samples: per value, the number of its sample in scan order (all of them, unless batches lack the key).
        minimum: ``[n]`` smallest finite value per sample, NaN where there is none.
        maximum: ``[n]`` largest finite value per sample.
        mean: ``[n]`` mean of the finite values per sample.
        std: ``[n]`` their population standard deviation.
        nonfinite: ``[n]`` how many values are NaN or infinite.
        digests: per sample, a hash of the full values without padding, which equal rows share in every split.
        shapes: how often each per-sample shape occurs.
    """

    path: str
    is_label: bool
    dtype: torch.dtype
    values: Sequence[torch.Tensor] = field(repr=False)
    reduced: bool
    samples: Sequence[int] = field(repr=False)
    minimum: np.ndarray[Any, Any] = field(repr=False)
    maximum: np.ndarray[Any, Any] = field(repr=False)
    mean: np.ndarray[Any, Any] = field(repr=False)
    std: np.ndarray[Any, Any] = field(repr=False)
    nonfinite: np.ndarray[Any, Any] = field(repr=False)
    digests: Sequence[bytes] = field(repr=False)
    shapes: Counter[tuple[int, ...]]

    def stacked(self) -> torch.Tensor | None:
        """All values as one tensor ``[n, ...]``; ``None`` where their shapes differ."""
        if len(self.shapes) != 1 or len({value.shape for value in self.values}) != 1:
            return None
        return torch.stack([*self.values])

    @property
    def is_floating(self) -> bool:
        """Whether the values are floating point numbers."""
        return self.dtype.is_floating_point


@dataclass(frozen=True, eq=False)
class Rows:
    """The scanned samples of one split.

    Attributes:
        split: ``train`` or ``eval``.
        count: how many samples were read, in loader order.
        complete: whether the loader came to its end.
        batch_sizes: samples per batch.
        columns: by path, every key with one tensor per sample.
        texts: by path, every key with one text per sample.
        label_texts: the paths of the texts that are labels.
        indices: per sample its place in the data set behind the loader; ``None`` where that is not known.
        lengths: per batch, how many samples each of its parts seems to hold.
    """

    split: Split
    count: int = 0
    complete: bool = False
    batch_sizes: Sequence[int] = ()
    columns: dict[str, Column] = field(default_factory=dict, repr=False)
    texts: dict[str, list[str]] = field(default_factory=dict, repr=False)
    label_texts: frozenset[str] = frozenset()
    indices: Sequence[int] | None = field(default=None, repr=False)
    lengths: Sequence[dict[str, int]] = field(default=(), repr=False)

    @property
    def inputs(self) -> list[Column]:
        """The columns that are no labels."""
        return [column for column in self.columns.values() if not column.is_label]

    @property
    def labels(self) -> list[Column]:
        """The columns of the labels."""
        return [column for column in self.columns.values() if column.is_label]

    def name(self, sample: int, path: str = "") -> str:
        """How findings call a sample, such as ``train[1437].pixel_values``.

        The number is its place in the data set where the loader tells it, in loader order otherwise.
        """
        number = sample if self.indices is None else self.indices[sample]
        dotted = path if not path or path.startswith("[") else f".{path}"
        return f"{self.split}[{number}]{dotted}"

    @cached_property
    def content(self) -> tuple[str, ...]:
        """The paths of the inputs that tell samples apart: no masks, positions, names and running numbers."""
        columns = [
            path
            for path, column in sorted(self.columns.items())
            if not column.is_label and len(column.digests) == self.count and not is_aside(column)
        ]
        texts = [
            path
            for path, texts in sorted(self.texts.items())
            if len(texts) == self.count and path not in self.label_texts and not self._is_name(texts)
        ]
        return (*columns, *texts)

    def contents(self, paths: Sequence[str]) -> list[bytes]:
        """Per sample, a hash of what it holds under some of the paths of :attr:`content`."""
        parts = [
            self.columns[path].digests if path in self.columns else _text_digests(self.texts[path])
            for path in paths
        ]
        return [b"".join(row) for row in zip(*parts, strict=True)]

    @cached_property
    def digests(self) -> list[bytes]:
        """Per sample, a hash of the content of all inputs, masks and running numbers apart."""
        return self.contents(self.content)

    @cached_property
    def label_digests(self) -> list[bytes]:
        """Per sample, a hash of its labels."""
        parts = [column.digests for column in self.labels if len(column.digests) == self.count]
        parts += [
            _text_digests(self.texts[path])
            for path in sorted(self.label_texts)
            if len(self.texts[path]) == self.count
        ]
        return [b"".join(row) for row in zip(*parts, strict=True)] if parts else []

    def _is_name(self, texts: Sequence[str]) -> bool:
        """Whether texts beside tensors are names of samples: all different, without a space."""
        beside = any(not column.is_label for column in self.columns.values())
        return beside and len(set(texts)) == len(texts) and not any(" " in text for text in texts)


def _text_digests(texts: Sequence[str]) -> list[bytes]:
    return [hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts]


def is_aside(column: Column) -> bool:
    """Whether a column says nothing about a sample's content: a mask, positions, or a running number."""
    name = column.path.rpartition(".")[2]
    if name.endswith("mask") or name == "position_ids":
        return True
    single = all(shape == () or shape == (1,) for shape in column.shapes)
    return single and not column.is_floating and len(set(column.digests)) == len(column.digests) > 1


class RowReader:
    """Collects the rows of batch after batch.

    Args:
        split: ``train`` or ``eval``.
        room: bytes to keep; rows that come later are thinned out.
    """

    def __init__(self, split: Split, room: int = _KEPT_BYTES) -> None:
        self._split: Split = split
        self._room = room
        self._columns: dict[str, _Gathered] = {}
        self._texts: dict[str, list[str]] = {}
        self._sizes: list[int] = []
        self._lengths: list[dict[str, int]] = []
        self._labels: Counter[str] = Counter()
        self._count = 0

    def add(self, batch: Any) -> int:
        """Take in one batch; gives its number of samples."""
        found = columns_of(batch)
        self._labels.update(found.labels)
        self._sizes.append(found.size)
        self._lengths.append(dict(found.lengths))
        content = _content_masks(found.tensors)
        for path, values in found.tensors.items():
            gathered = self._columns.setdefault(path, _Gathered())
            self._room -= gathered.add(values, self._count, content, self._room)
        for path, texts in found.texts.items():
            self._texts.setdefault(path, []).extend(texts)
        self._count += found.size
        return found.size

    def read(self, complete: bool, drawn: Sequence[Any] | None = None) -> Rows:
        """The rows so far.

        Args:
            complete: whether the loader came to its end.
            drawn: per batch, the places of its samples in the data set.
        """
        return Rows(
            split=self._split,
            count=self._count,
            complete=complete,
            batch_sizes=tuple(self._sizes),
            columns={
                path: gathered.read(path, path in self._labels) for path, gathered in self._columns.items()
            },
            texts=self._texts,
            label_texts=frozenset(self._labels.keys() & self._texts.keys()),
            indices=self._places(drawn),
            lengths=tuple(self._lengths),
        )

    def _places(self, drawn: Sequence[Any] | None) -> list[int] | None:
        if drawn is None or len(drawn) < len(self._sizes):
            return None
        batches = drawn[: len(self._sizes)]
        fits = all(
            isinstance(batch, (list, tuple)) and len(batch) == size and all(isinstance(i, int) for i in batch)
            for batch, size in zip(batches, self._sizes, strict=True)
        )
        return [place for batch in batches for place in batch] if fits else None


def _content_masks(tensors: Any) -> torch.Tensor | None:
    """``[batch, length]``: which positions the attention mask counts, where the batch has a plain one."""
    mask = next((value for path, value in tensors.items() if path.rpartition(".")[2] == _MASK), None)
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return None
    return mask.cpu() != 0


class _Gathered:
    """The values and statistics of one column so far."""

    def __init__(self) -> None:
        self._values: list[torch.Tensor] = []
        self._samples: list[int] = []
        self._stats: list[torch.Tensor] = []
        self._digests: list[bytes] = []
        self._shapes: Counter[tuple[int, ...]] = Counter()
        self._reduced = False
        self._dtype = torch.float32
        self._pad: float | None = None

    def add(self, values: Any, first: int, content: torch.Tensor | None, room: int) -> int:
        """Take in one value per sample; gives the bytes that were kept."""
        kept = 0
        padded = isinstance(values, torch.Tensor)
        if padded:
            values = values.cpu()
            self._pad = _pad(values) if self._pad is None else self._pad
            self._stats.append(_statistics(values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)))
        else:
            self._stats += [_statistics(value.cpu().reshape(1, -1)) for value in values]
        for number, value in enumerate(values):
            value = value.cpu()
            self._dtype = value.dtype
            self._shapes[tuple(value.shape)] += 1
            self._samples.append(first + number)
            mask = None if content is None else content[number]
            self._digests.append(_digest(_without_padding(value, mask, self._pad) if padded else value))
            small = value.numel() <= LARGEST_ROW and kept < room
            self._reduced |= not small
            row = value.clone() if small else _thinned(value)
            kept += row.numel() * row.element_size()
            self._values.append(row)
        return kept

    def read(self, path: str, is_label: bool) -> Column:
        stats = torch.cat(self._stats).numpy()
        return Column(
            path=path,
            is_label=is_label,
            dtype=self._dtype,
            values=self._values,
            reduced=self._reduced,
            samples=self._samples,
            minimum=stats[:, 0],
            maximum=stats[:, 1],
            mean=stats[:, 2],
            std=stats[:, 3],
            nonfinite=stats[:, 4].astype(np.int64),
            digests=self._digests,
            shapes=self._shapes,
        )


def _statistics(rows: torch.Tensor) -> torch.Tensor:
    """``[n, 5]`` float64: minimum, maximum, mean, standard deviation of the finite values; count of the others."""
    if not rows.numel():
        nothing = torch.full((len(rows), 5), float("nan"), dtype=torch.float64)
        nothing[:, 4] = 0
        return nothing
    finite = rows.isfinite() if rows.is_floating_point() else None
    if finite is not None and not bool(finite.all()):
        found = [_statistics(row[mask].unsqueeze(0)) for row, mask in zip(rows, finite, strict=True)]
        stats = torch.cat(found)
        stats[:, 4] = (~finite).sum(1)
        return stats
    wide = rows.double() if rows.shape[1] <= LARGEST_ROW or not rows.is_floating_point() else rows.float()
    low, high = wide.aminmax(dim=1)
    std, mean = torch.std_mean(wide, dim=1, correction=0)
    return torch.stack([low.double(), high.double(), mean.double(), std.double(), torch.zeros(len(rows))], 1)


def _digest(value: torch.Tensor) -> bytes:
    value = value.contiguous()
    if value.dtype is torch.bfloat16 or (value.is_floating_point() and value.element_size() == 1):
        value = value.view(torch.int16 if value.element_size() == 2 else torch.uint8)
    header = f"{tuple(value.shape)}".encode()
    return hashlib.blake2b(header + value.numpy().tobytes(), digest_size=16).digest()


def _pad(values: torch.Tensor) -> float | None:
    """What many rows ``[rows, length]`` are filled up with at their end, where that shows."""
    if values.ndim != 2 or values.shape[1] < 2 or len(values) < 4:
        return None
    ends = Counter(values[values[:, -1] == values[:, -2], -1].tolist())
    value, count = next(iter(ends.most_common(1)), (None, 0))
    return value if count >= _PADDED * len(values) else None


def _without_padding(value: torch.Tensor, content: torch.Tensor | None, pad: float | None) -> torch.Tensor:
    """The value at the positions that count, without the padding at its end.

    A mask that leaves out different values is not believed. Where it is not known what rows are padded with, what
    repeats at the end is kept once.
    """
    if not value.ndim or not len(value):
        return value
    if content is not None and len(content) == len(value):
        outside = value[~content]
        if not len(outside) or bool((outside == outside[0]).all()):
            return value[content]
    if pad is not None and value.ndim == 1:
        kept = (value != pad).nonzero()
        return value[: int(kept[-1]) + 1] if len(kept) else value[:0]
    same = (value == value[-1]).flatten(1).all(1) if value.ndim > 1 else value == value[-1]
    differing = (~same).nonzero()
    return value[: int(differing[-1]) + 2] if len(differing) else value[:1]


def _thinned(value: torch.Tensor) -> torch.Tensor:
    steps = [max(1, -(-side // _REDUCED_SIDE)) for side in value.shape]
    thin = value[tuple(slice(None, None, step) for step in steps)]
    return thin.flatten()[:LARGEST_ROW].clone() if thin.numel() > LARGEST_ROW else thin.clone()
