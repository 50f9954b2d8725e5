"""A look at samples as the model sees them: decoded text, what is masked, what is supervised, the labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch

from debugkit.data.batch import input_ids, named
from debugkit.data.class_names import class_names
from debugkit.data.labels import IGNORED, LabelReader, Labels
from debugkit.data.rows import Column, RowReader, Rows, Split
from debugkit.errors import Unavailable
from debugkit.probes.stream import EvalStream, TrainStream
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.codec import Codec

Role = Literal["text", "special", "masked", "supervised", "target"]

_MOST_TAGS = 200


@dataclass(frozen=True)
class Piece:
    """A stretch of a row with one role.

    Attributes:
        role: ``special`` for special tokens, ``masked`` for positions that the attention mask leaves out,
            ``supervised`` for positions with a label, ``target`` for labels that are texts of their own,
            ``text`` for everything else.
        text: decoded, or the ids where there is no tokenizer.
        tokens: how many positions it covers.
        label: the label of its positions, where that is not the token itself.
    """

    role: Role
    text: str
    tokens: int
    label: str | None = None


@dataclass(frozen=True)
class Sample:
    """One sample as the model sees it.

    Attributes:
        name: such as ``train[17]``.
        label: its label, by name where names are known; ``None`` without one per sample.
        pieces: its token ids, decoded.
        targets: labels that are texts of their own.
        facts: what the other tensors hold, line by line.
        texts: the texts beside them, by key.
        tokens: positions in the row; 0 without token ids.
        padding: how many of them are masked.
        supervised: how many carry a label; ``None`` where labels are not per token.
    """

    name: str
    label: str | None
    pieces: tuple[Piece, ...]
    targets: tuple[Piece, ...]
    facts: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    tokens: int = 0
    padding: int = 0
    supervised: int | None = None


def peek(target: Target, count: int = 4, split: Split = "train") -> list[Sample]:
    """The first samples of a target's loader.

    Args:
        target: its data and, if there is one, its tokenizer.
        count: how many samples, at most.
        split: which loader.

    Raises:
        Unavailable: there is no such loader.
        Broken: the loader gives nothing.
    """
    tokenizer = getattr(target.tokenizer, "tokenizer", target.tokenizer)
    codec = None if tokenizer is None else Codec(tokenizer)
    with Sandbox(target) as sandbox:
        kind = TrainStream if split == "train" else EvalStream
        stream = kind.collect(target, sandbox)
        return list(_samples(target, stream, codec, count, split))


def _samples(
    target: Target, stream: TrainStream | EvalStream, codec: Codec | None, count: int, split: Split
) -> Iterator[Sample]:
    rows, labels = RowReader(split), LabelReader()
    batches = []
    seen = 0
    for batch in stream.batches(seconds=60.0):
        batches.append(batch)
        labels.add(batch)
        if not (size := rows.add(batch)):
            raise Unavailable(
                f"a batch of `{stream.name}` is a `{type(batch).__name__}` without columns to show"
            )
        seen += size
        if seen >= count:
            break
    table, found = rows.read(False, stream.indices), labels.read()
    names = class_names(target.model, found)
    first = 0
    for batch, size in zip(batches, table.batch_sizes, strict=True):
        ids = input_ids(batch)
        for row in range(min(size, count - first)):
            yield _sample(
                table, first + row, batch, None if ids is None else ids[row], row, codec, found, names
            )
        first += size


def _sample(
    rows: Rows,
    number: int,
    batch: Any,
    ids: torch.Tensor | None,
    row: int,
    codec: Codec | None,
    labels: Labels,
    names: dict[int, str],
) -> Sample:
    texts = tuple(
        (path or "text", column[number]) for path, column in rows.texts.items() if number < len(column)
    )
    given = [column for column in rows.labels if number < len(column.values)]
    beside = None if ids is None else _beside(given, number, ids)
    supervised = None if beside is None else int((beside != IGNORED).sum())
    if ids is not None and beside is not None and _is_next(ids.cpu(), beside):
        beside = None
    target = None if ids is None or beside is not None else _sequence(given, number)
    mask = None if ids is None else _mask(batch, ids, row)
    shown = {column.path for column in given if beside is not None or target is not None}
    facts = tuple(
        _fact(column, number)
        for column in rows.columns.values()
        if column.path not in shown and number < len(column.values) and not _is(column, number, ids)
    )
    pieces: tuple[Piece, ...] = ()
    if ids is not None:
        pieces = tuple(_pieces(ids.tolist(), mask, None if beside is None else beside.tolist(), codec, names))
    return Sample(
        name=rows.name(number),
        label=_label(given, number, labels, names),
        pieces=pieces,
        targets=() if target is None else tuple(_target(target.tolist(), codec)),
        facts=facts,
        texts=texts,
        tokens=0 if ids is None else len(ids),
        padding=0 if mask is None else mask.count(False),
        supervised=supervised,
    )


def _pieces(
    ids: list[int],
    mask: list[bool] | None,
    labels: list[int] | None,
    codec: Codec | None,
    names: dict[int, str],
) -> Iterator[Piece]:
    special = codec.special if codec else frozenset[int]()
    copied = labels is not None and _are_tokens(ids, labels)
    tags: list[str | None] = [None] * len(ids)
    if labels is not None:
        for place, label in enumerate(labels):
            if label != IGNORED and not (copied and label == ids[place]):
                tags[place] = _text([label], codec) if copied else names.get(label, str(label))

    def role(place: int) -> Role:
        if mask is not None and not mask[place]:
            return "masked"
        if labels is not None and labels[place] != IGNORED:
            return "supervised"
        return "special" if ids[place] in special else "text"

    for (kind, tag), places in groupby(range(len(ids)), key=lambda place: (role(place), tags[place])):
        stretch = list(places)
        yield Piece(kind, _text([ids[place] for place in stretch], codec), len(stretch), tag)


def _target(labels: list[int], codec: Codec | None) -> Iterator[Piece]:
    for counts, run in groupby(labels, key=lambda label: label != IGNORED):
        ids = list(run)
        yield Piece("target", _text(ids, codec), len(ids)) if counts else Piece("masked", "-100", len(ids))


def _text(ids: Sequence[int], codec: Codec | None) -> str:
    decoded = codec.decode(ids) if codec is not None else None
    return " ".join(map(str, ids)) if decoded is None else decoded


def _are_tokens(ids: Sequence[int], labels: Sequence[int]) -> bool:
    """Whether labels are token ids, as for a language model: in place, shifted, or of masked words."""
    counted = {label for label in labels if label != IGNORED}
    same = sum(one == other for one, other in zip(ids, labels, strict=True))
    ahead = sum(one == other for one, other in zip(ids[1:], labels, strict=False))
    held = sum(label != IGNORED for label in labels)
    return 2 * max(same, ahead) >= held or max(counted, default=0) > _MOST_TAGS


def _is_next(ids: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether labels are the ids one position ahead."""
    counted = labels[:-1] != IGNORED
    return bool(counted.any()) and torch.equal(ids[1:][counted], labels[:-1][counted])


def _beside(given: Iterable[Column], number: int, ids: torch.Tensor) -> torch.Tensor | None:
    """Labels with one value per token."""
    for column in given:
        value = column.values[number]
        if value.shape == ids.shape and not column.is_floating and value.ndim == 1:
            return value
    return None


def _sequence(given: Iterable[Column], number: int) -> torch.Tensor | None:
    """Labels that are a sequence of ids with a length of their own."""
    for column in given:
        value = column.values[number]
        if value.ndim == 1 and len(value) > 1 and not column.is_floating and int(value.max()) > 1:
            return value
    return None


def _mask(batch: Any, ids: torch.Tensor, row: int) -> list[bool] | None:
    mask = named(batch, "attention_mask")
    if mask is None or mask.ndim != 2 or mask.shape[1] != len(ids):
        return None
    return [bool(value) for value in (mask[row] > 0).tolist()]


def _is(column: Column, number: int, ids: torch.Tensor | None) -> bool:
    """Whether a column is shown already: the ids, their mask, or a label per sample."""
    value = column.values[number]
    if column.is_label and value.numel() == 1:
        return True
    if ids is None:
        return False
    name = column.path.rpartition(".")[2]
    return name == "attention_mask" or (value.shape == ids.shape and torch.equal(value, ids.cpu()))


def _label(given: Sequence[Column], number: int, labels: Labels, names: dict[int, str]) -> str | None:
    if len(given) != 1:
        return None
    value = given[0].values[number]
    if value.numel() != 1:
        on = value.flatten().tolist()
        if labels.kind == "multi-label":
            return ", ".join(names.get(index, str(index)) for index, each in enumerate(on) if each) or "none"
        return None
    item = value.item()
    name = names.get(int(item)) if labels.kind == "classes" else None
    shown = f"{item:g}" if isinstance(item, float) else str(item)
    return f"{shown} ({name})" if name and name != shown else shown


def _fact(column: Column, number: int) -> str:
    shapes = [tuple(column.values[number].shape)] if not column.reduced else [*column.shapes]
    shape = " or ".join(f"[{', '.join(map(str, each))}]" for each in shapes)
    name = str(column.dtype).removeprefix("torch.")
    low, high, mean = column.minimum[number], column.maximum[number], column.mean[number]
    values = f"all {low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, mean {mean:.4g}"
    odd = f", {column.nonfinite[number]} not finite" if column.nonfinite[number] else ""
    return f"{column.path or 'batch'}: {name} {shape}, {values}{odd}".replace("[], all ", "")
