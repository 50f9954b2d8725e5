"""Token rows as the model sees them, and the tokenizer that should have made them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import input_ids, named, size, split, tensors
from debugkit.data.labels import IGNORED, as_tensor
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.target import Target
from debugkit.tokens.codec import Codec, Habits
from debugkit.weights.input_embedding import input_embedding, is_trained

_MOST_ROWS = 256
_AS_INPUTS = 0.9


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One row of token ids without its padding.

    Attributes:
        sample: its number in loader order.
        ids: the ids from the first to the last that are no padding.
        width: the length of the padded row.
        types: ``token_type_ids`` of the same positions; ``None`` where the batch has none.
        text: the text it was made from, where the batch holds it.
    """

    sample: int
    ids: tuple[int, ...]
    width: int
    types: tuple[int, ...] | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """The first rows of token ids beside their tokenizer.

    Attributes:
        rows: rows that are not empty.
        targets: the labels, where they are texts of their own that a decoder learns to write.
        padding: ids at the places that a mask leaves out.
        media: whether images, sound or the like come with the ids, which may then stand for them.
        codec: the tokenizer.
        habits: what it adds around text.
        exact: whether it is certain where rows begin and end: padding is marked by a mask, or by an id that
            stands for nothing else.
        next_token: whether the labels are the ids themselves, as for a causal language model.
        sequence_labels: whether there is one label per row (classification, similarity, regression).
        trained: whether the input embedding holds trained rather than freshly drawn vectors; ``None`` without one.
        vectors: the number of vectors in the input embedding; ``None`` without one.
    """

    cost: ClassVar[Cost] = "data"
    rows: tuple[TokenRow, ...] = field(repr=False)
    targets: tuple[TokenRow, ...] = field(repr=False)
    padding: frozenset[int]
    media: bool
    codec: Codec
    habits: Habits
    exact: bool
    next_token: bool
    sequence_labels: bool
    trained: bool | None
    vectors: int | None

    @staticmethod
    def collect(target: Target, batches: Batches) -> Decoded:
        """Read the rows of the first batches and learn the tokenizer's habits.

        Raises:
            Unavailable: there is no tokenizer, or there are no token ids.
        """
        if target.tokenizer is None:
            raise Unavailable("the target has no tokenizer; pass `Target(tokenizer=...)`")
        codec = Codec(getattr(target.tokenizer, "tokenizer", target.tokenizer))
        found = [(batch, ids) for batch in batches.items if (ids := _ids(batch)) is not None]
        if not found:
            raise Unavailable(
                "the batches hold no token ids; a mapping needs `input_ids`, a tuple an integer matrix"
            )
        texts = [text for _, ids in found[:1] if (text := codec.decode(_bare(ids[0], codec)[:16]))]
        habits = codec.habits(texts)
        rows: list[TokenRow] = []
        padding: set[int] = set()
        exact, first = True, 0
        for batch, ids in found:
            mask = _mask(batch, ids)
            exact &= mask is not None or not _pad_is_ambiguous(codec, habits)
            padding.update(() if mask is None else ids[~mask].tolist())
            rows += _rows(batch, ids, mask, codec, habits, first)
            first += len(ids)
        if not rows:
            raise Unavailable("every row of token ids is empty or padding only")
        rows = rows[:_MOST_ROWS]
        labels = [as_tensor(split(batch)[1]) for batch, _ in found]
        embedding = input_embedding(target.model)
        return Decoded(
            rows=tuple(rows),
            targets=tuple(_target_rows(target.model, found, rows, codec, habits)),
            padding=frozenset(padding),
            media=any(t.is_floating_point() and t.ndim > 2 for batch, _ in found for _, t in tensors(batch)),
            codec=codec,
            habits=habits,
            exact=exact,
            next_token=all(_same(label, ids) for label, (_, ids) in zip(labels, found, strict=True)),
            sequence_labels=all(label is not None and label.numel() == len(label) for label in labels),
            trained=is_trained(input_embedding(target.model, max(max(row.ids) for row in rows))),
            vectors=None if embedding is None else embedding.shape[0],
        )

    @property
    def tokens(self) -> int:
        """The number of ids in all rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def varied(self) -> bool:
        """Whether rows differ in length, as texts do and equal pieces of a longer text do not."""
        return len(shorter(self.rows)) > len(self.rows) / 4

    @property
    def longest(self) -> int:
        """The length of the longest row, without padding."""
        return max(len(row.ids) for row in self.rows)

    def is_padded_with(self, marks: Sequence[int]) -> bool:
        """Whether the padding token is one of these ids."""
        return self.codec.roles.get("pad") in marks

    def spans(self, row: TokenRow, *, intact: bool = False) -> Iterator[tuple[int, ...]]:
        """The stretches of a row between special tokens and ids that the tokenizer does not have.

        Args:
            row: the row.
            intact: leave out stretches next to an unknown token, which may have torn a word.
        """
        unknown = self.codec.roles.get("unk")
        span: list[int] = []
        torn = False
        for index in (*row.ids, None):
            if index is not None and index not in self.codec.added and self.codec.knows(index):
                span.append(index)
                continue
            if span and not (intact and (torn or (index is not None and index == unknown))):
                yield tuple(span)
            span, torn = [], index is not None and index == unknown


def shorter(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows that are shorter than the longest, and so were not cut where it may have been."""
    longest = max((len(row.ids) for row in rows), default=0)
    return [row for row in rows if len(row.ids) < longest]


def _ids(batch: Any) -> torch.Tensor | None:
    ids = input_ids(batch)
    if (
        ids is None
        and isinstance(batch, Mapping)
        and isinstance(found := batch.get("input_ids"), torch.Tensor)
    ):
        ids = found.flatten(0, 1) if found.ndim == 3 else None
    if ids is None or ids.is_floating_point() or not ids.numel():
        return None
    return (ids.T if _is_length_first(ids, batch) else ids).detach().cpu()


def _is_length_first(ids: torch.Tensor, batch: Any) -> bool:
    """Whether ids are ``[length, batch]``, as recurrent layers take them by default, beside tensors with the batch first."""
    rows = size(batch)
    return ids.ndim == 2 and ids.shape[0] != rows and ids.shape[1] == rows


def _mask(batch: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """Which positions are content, by the batch's own mask."""
    inputs, _ = split(batch)
    candidates = [named(batch, "attention_mask")]
    if isinstance(inputs, (tuple, list)):
        candidates += [value for value in inputs if isinstance(value, torch.Tensor)]
    for mask in candidates:
        if mask is None or mask.numel() != ids.numel() or mask.is_complex():
            continue
        turned = mask.shape != ids.shape and mask.shape == ids.T.shape
        mask = (mask.T if turned else mask).detach().cpu().reshape(ids.shape)
        if bool(((mask == 0) | (mask == 1)).all()) and bool((mask == 1).any()):
            return mask == 1
    return None


def _rows(
    batch: Any, ids: torch.Tensor, mask: torch.Tensor | None, codec: Codec, habits: Habits, first: int
) -> Iterator[TokenRow]:
    pad = codec.roles.get("pad")
    strips = pad is not None and (mask is None or not _pad_is_ambiguous(codec, habits))
    content = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.clone()
    if strips:
        content &= ids != pad
    types = named(batch, "token_type_ids")
    if types is not None:
        types = types.detach().cpu().reshape(ids.shape) if types.numel() == ids.numel() else None
    texts = _texts(batch, len(ids))
    for number, row in enumerate(ids):
        places = content[number].nonzero().flatten().tolist()
        if not places:
            continue
        span = slice(places[0], places[-1] + 1)
        yield TokenRow(
            sample=first + number,
            ids=tuple(row[span].tolist()),
            width=len(row),
            types=None if types is None else tuple(types[number][span].tolist()),
            text=texts[number] if texts else None,
        )


def _pad_is_ambiguous(codec: Codec, habits: Habits) -> bool:
    """Whether the pad id also stands for something else, such as the end of a text."""
    pad = codec.roles.get("pad")
    others = {index for role, index in codec.roles.items() if role != "pad"} | habits.special
    return pad in others


def _bare(row: torch.Tensor, codec: Codec) -> list[int]:
    return [index for index in row.tolist() if index not in codec.added]


def _target_rows(
    model: torch.nn.Module,
    found: Sequence[tuple[Any, torch.Tensor]],
    rows: Sequence[TokenRow],
    codec: Codec,
    habits: Habits,
) -> list[TokenRow]:
    """Labels that are rows of ids with a length of their own, for a model that has a decoder to write them."""
    if not _has_decoder(model) and all(named(batch, "decoder_input_ids") is None for batch, _ in found):
        return []
    ignored = {IGNORED} if _pad_is_ambiguous(codec, habits) else {IGNORED, codec.roles.get("pad")}
    targets: list[TokenRow] = []
    beside, first = True, 0
    for batch, ids in found:
        labels = as_tensor(split(batch)[1])
        if labels is None or labels.ndim != 2 or len(labels) != len(ids) or not _is_integer(labels):
            return []
        beside &= labels.shape == ids.shape
        for number, row in enumerate(labels.tolist()):
            places = [place for place, index in enumerate(row) if index not in ignored]
            if places:
                inner = tuple(row[places[0] : places[-1] + 1])
                targets.append(TokenRow(first + number, inner, len(row)))
        first += len(ids)
    if any(min(row.ids) < 0 for row in targets):
        return []
    lengths = {row.sample: len(row.ids) for row in rows}
    alike = sum(0 <= lengths.get(row.sample, -1) - len(row.ids) <= 2 for row in targets)
    return [] if beside and alike >= _AS_INPUTS * len(targets) else targets[:_MOST_ROWS]


def _has_decoder(model: torch.nn.Module) -> bool:
    kinds = {type(module) for module in model.modules()}
    return any(takes(kind.forward, "decoder_input_ids") for kind in kinds)


def takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _is_integer(labels: torch.Tensor) -> bool:
    return not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool


def _texts(batch: Any, rows: int) -> list[str] | None:
    """The longest column of texts in the batch, one per row."""
    values: Sequence[Any] = ()
    if isinstance(batch, Mapping):
        values = list(batch.values())
    elif isinstance(batch, (tuple, list)):
        values = batch
    columns = [
        list(value)
        for value in values
        if isinstance(value, (list, tuple)) and len(value) == rows and all(isinstance(v, str) for v in value)
    ]
    return max(columns, key=lambda column: sum(map(len, column)), default=None)


def _same(labels: torch.Tensor | None, ids: torch.Tensor) -> bool:
    """Whether labels repeat the ids, in place or one position earlier."""
    if labels is None or labels.shape != ids.shape or labels.is_floating_point() or ids.shape[1] < 2:
        return False
    pairs = ((labels, ids), (labels[:, :-1], ids[:, 1:]))
    for label, index in pairs:
        counted = label != IGNORED
        if counted.any() and float((label == index)[counted].float().mean()) >= 0.9:
            return True
    return False
