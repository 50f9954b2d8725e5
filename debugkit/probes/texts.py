"""The texts that the model reads: those of the batches, or what their token ids stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from debugkit.data.rows import Column, Rows
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.samples import Samples
from debugkit.target import Target
from debugkit.tokens.codec import Codec

_FEW_WORDS = 3
_FEW_DIFFERENT = 0.2


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of the training samples.

    Attributes:
        values: one text per sample; where a sample has several, joined by newlines.
        names: how findings call each sample.
        path: the place of the texts in a batch; of the first of several.
        fields: per place, one text per sample, where a sample has several.
        decoded: whether they were decoded from token ids, without special tokens.
        exact: per text, whether encoding it gives the same ids again; always true where nothing was decoded.
        alone: whether they are all that tells samples apart, rather than remarks beside images or features.
        complete: whether these are all texts of the data set.
    """

    cost: ClassVar[Cost] = "data"
    values: Sequence[str] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    path: str
    fields: Mapping[str, Sequence[str]] = field(repr=False)
    decoded: bool
    exact: Sequence[bool] = field(repr=False)
    alone: bool
    complete: bool

    @staticmethod
    def collect(
        target: Target,
        samples: Samples,
        *,
        max_decoded: Annotated[int, Field(gt=0, description="rows of token ids to decode at most")] = 512,
    ) -> Texts:
        """Take the texts of the scanned samples, or decode their token ids.

        Raises:
            Unavailable: there are neither texts, nor token ids with a tokenizer.
        """
        rows = samples.rows
        if fields := {path: texts for path, texts in rows.texts.items() if _is_content(path, texts, rows)}:
            return _given(fields, rows)
        column = _token_ids(rows)
        if column is None:
            raise Unavailable("the batches hold neither texts nor token ids")
        if target.tokenizer is None:
            raise Unavailable("the batches hold token ids but no texts; pass `Target(tokenizer=...)`")
        return _decoded(
            Codec(getattr(target.tokenizer, "tokenizer", target.tokenizer)), column, rows, max_decoded
        )


def _given(fields: Mapping[str, Sequence[str]], rows: Rows) -> Texts:
    values = ["\n".join(parts) for parts in zip(*fields.values(), strict=True)]
    return Texts(
        values=values,
        names=[rows.name(sample) for sample in range(rows.count)],
        path=next(iter(fields)),
        fields=fields,
        decoded=False,
        exact=[True] * len(values),
        alone=not any(column.is_floating for column in rows.inputs)
        or not rows.label_texts.isdisjoint(fields),
        complete=rows.complete,
    )


def _is_content(path: str, texts: Sequence[str], rows: Rows) -> bool:
    """Whether texts are more than the names of classes or of samples."""
    if len(texts) != rows.count:
        return False
    filled = [text for text in texts if text.strip()]
    words = sum(len(text.split()) for text in filled) / max(len(filled), 1)
    different = len({*filled})
    if path in rows.label_texts and 2 * different <= len(filled):
        return False
    if rows.inputs and words <= 1.05 and (different == len(filled) or not filled):
        return False
    beside = rows.inputs or len(rows.texts) > 1
    return not (beside and filled and words < _FEW_WORDS and different <= _FEW_DIFFERENT * len(filled))


def _token_ids(rows: Rows) -> Column | None:
    """The column of token ids: ``input_ids``, or the one row of whole numbers among the inputs."""
    found = [
        column
        for column in rows.inputs
        if not column.is_floating
        and column.dtype in (torch.int64, torch.int32)
        and len(column.values) == rows.count
        and not column.reduced
        and all(len(shape) == 1 for shape in column.shapes)
        and not column.path.rpartition(".")[2].endswith(("mask", "type_ids", "position_ids"))
    ]
    named = [column for column in found if column.path.rpartition(".")[2] == "input_ids"]
    return (named or found or [None])[0]  # type: ignore[list-item]


def _decoded(codec: Codec, column: Column, rows: Rows, most: int) -> Texts:
    prefix = column.path.rpartition("input_ids")[0]
    mask = rows.columns.get(f"{prefix}attention_mask")
    values: list[str] = []
    names: list[str] = []
    exact: list[bool] = []
    for number, row in enumerate(column.values[:most]):
        content = None if mask is None or len(mask.values) != rows.count else mask.values[number]
        kept = row[content != 0] if content is not None and content.shape == row.shape else row
        ids = [index for index in kept.tolist() if index not in codec.special and codec.knows(index)]
        text = codec.decode(ids) if ids else ""
        if text is None:
            raise Unavailable("the tokenizer can't decode token ids")
        unknown = codec.roles.get("unk")
        values.append(text if text.strip() or unknown not in kept.tolist() else "?")
        names.append(rows.name(number))
        exact.append(codec.encode(text) == ids)
    if not any(value.strip() for value in values) and not _is_padded_text(column, codec):
        raise Unavailable("no row of token ids stands for text")
    return Texts(
        values=values,
        names=names,
        path=column.path,
        fields={},
        decoded=True,
        exact=exact,
        alone=True,
        complete=rows.complete and len(values) == rows.count,
    )


def _is_padded_text(column: Column, codec: Codec) -> bool:
    """Whether rows without text hold the special tokens of the tokenizer, and so were made by it."""
    return all(set(row.tolist()) <= codec.special for row in column.values[:16])
