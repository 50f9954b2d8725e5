"""Rows in which no token has a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from debugkit import Finding, fail, warn
from debugkit.data.shares import percent
from debugkit.probes.samples import Samples
from debugkit.probes.supervision import Supervision
from debugkit.probes.token_ids import TokenIds

_FEWEST_ROWS = 4
_ANSWER = (
    "look at what sets labels to -100: the marks of an answer (`{% generation %}` in the chat template, the response "
    "template of a completion collator) and what truncation leaves of it"
)


@dataclass(frozen=True)
class RowCount:
    """A row's number in loader order, its tokens without padding, and how many of them have a label that counts."""

    sample: int
    length: int
    supervised: int


def row_counts(supervision: Supervision, samples: Samples | None, ids: TokenIds | None) -> list[RowCount]:
    """Every scanned row; the first rows alone where the scan does not tell which labels count."""
    first = [RowCount(row.sample, row.length, sum(row.supervised)) for row in supervision.rows]
    if samples is None or not supervision.by_value:
        return first
    labels = [column for column in samples.rows.labels if all(len(shape) == 1 for shape in column.shapes)]
    if len(labels) != 1 or labels[0].reduced or labels[0].is_floating:
        return first
    lengths = {}
    if ids is not None and supervision.task != "written" and len(ids.ids) == len(labels[0].values):
        lengths = dict(zip(ids.samples.tolist(), ids.lengths.tolist(), strict=True))
    ignored = torch.tensor(sorted(supervision.ignored), dtype=torch.long)
    skipped = int(supervision.task == "next" and not supervision.moved)
    found = []
    for sample, row in zip(labels[0].samples, labels[0].values, strict=True):
        asked = int((~torch.isin(row.long(), ignored))[skipped:].sum())
        length = int((row >= 0).sum()) if supervision.task == "written" else len(row)
        found.append(RowCount(sample, lengths.get(sample, length), asked))
    return found if len(found) >= len(first) else first


def unsupervised(
    rows: list[RowCount], supervision: Supervision, samples: Samples | None, most: float
) -> Iterator[Finding]:
    """No supervised token in any row, in all long rows, or in too many."""
    without = [row for row in rows if not row.supervised]
    if not without:
        return
    where = f"train[{without[0].sample}]" if samples is None else samples.rows.name(without[0].sample)
    count = f"{len(without):,} of {len(rows):,} rows"
    if len(without) == len(rows):
        ignored = ", ".join(f"`{index}`" for index in sorted(supervision.ignored)[:3])
        yield fail(
            f"no token of {len(rows):,} row{'s' if len(rows) > 1 else ''} has a label that counts (all are {ignored}): "
            "there is nothing to learn, and the loss is 0 or NaN",
            where=where,
            hint=_ANSWER,
            rows=len(rows),
        )
    elif _are_cut(rows, without):
        return
    elif longest := _all_longest(rows, without):
        yield fail(
            f"{count} have no token with a label, and they are all rows of {longest:,} tokens or more: what should be "
            "learned from them was cut off",
            where=where,
            hint="raise `max_length`, or cut the prompt rather than the answer",
            rows=len(without),
            length=longest,
        )
    elif len(without) > most * len(rows) and len(rows) >= _FEWEST_ROWS:
        yield warn(
            f"{count} ({percent(len(without) / len(rows))}) have no token with a label: they cost time and teach nothing",
            where=where,
            hint=_ANSWER if supervision.task == "next" else "leave such rows out",
            rows=len(without),
        )


def _are_cut(rows: list[RowCount], without: list[RowCount]) -> bool:
    """Whether they all have the greatest length, and others less: the check `truncation` reports those."""
    longest = max(row.length for row in rows)
    return all(row.length == longest for row in without) and any(row.length < longest for row in rows)


def _all_longest(rows: list[RowCount], without: list[RowCount]) -> int | None:
    """The length from which on no row has a label, while every shorter one has; ``None`` without such a length."""
    if len(without) < _FEWEST_ROWS or len(rows) - len(without) < _FEWEST_ROWS:
        return None
    shortest = min(row.length for row in without)
    longest = max(row.length for row in rows if row.supervised)
    return shortest if shortest > longest else None
