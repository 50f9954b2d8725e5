"""Which tokens carry a label: row by row, as the loss counts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from debugkit.data.label_rule import LabelRule, counted
from debugkit.data.labels import IGNORED
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.token_targets import TokenTargets
from debugkit.target import Target
from debugkit.tokens.codec import Codec
from debugkit.tokens.token_labels import Part, Task, parts_of, runs_at_end, task_of
from debugkit.weights.input_embedding import input_embedding

_MOST_ROWS = 256
_CERTAIN = 0.1


@dataclass(frozen=True, eq=False)
class SupervisedRow:
    """One row of tokens, padding included, and which of them the loss asks for.

    Attributes:
        sample: its number in loader order.
        tokens: the ids; for a sequence to write, its labels as they are.
        content: which positions are no padding, as far as a mask or the padding token tells.
        labels: by position, the label of the token; ``None`` where it has none.
        supervised: which tokens have a label that counts.
    """

    sample: int
    tokens: tuple[int, ...]
    content: tuple[bool, ...]
    labels: tuple[int | None, ...]
    supervised: tuple[bool, ...]

    @property
    def length(self) -> int:
        """The number of tokens that are no padding."""
        return sum(self.content)


@dataclass(frozen=True, eq=False)
class Supervision:
    """The first rows, token by token, with what carries a label.

    Attributes:
        rows: up to 256 rows.
        task: what labels are: the ``next`` token, ``hidden`` words, ``tags`` of tokens, or a sequence to be
            ``written``.
        moved: for the next token: whether the data already has labels one position to the left.
        ignored: labels that do not count.
        traced: the samples in which it was seen which labels count for the loss. For the others this is concluded
            from those; where there are none, it is taken to be all but -100 and the loss's own ``ignore_index``.
        by_value: whether a label's value alone says whether it counts.
        masked: whether a mask says what is padding.
        pad: the padding token's id, where known.
        declared: whether a mask, the tokenizer or the model says what is padding; otherwise it is told from rows
            that end alike.
        eos: the id that ends a text, where known.
        codec: the tokenizer, where there is one.
        ids: the ids of all scanned samples, where they hold any.
    """

    cost: ClassVar[Cost] = "data"
    rows: tuple[SupervisedRow, ...] = field(repr=False)
    task: Task
    moved: bool
    ignored: frozenset[int]
    traced: frozenset[int]
    by_value: bool
    masked: bool
    pad: int | None
    declared: bool
    eos: int | None
    codec: Codec | None
    ids: TokenIds | None = field(default=None, repr=False)

    @staticmethod
    def collect(
        target: Target, batches: Batches, targets: TokenTargets | None, ids: TokenIds | None
    ) -> Supervision:
        """Read the rows of the first batches, and which labels count from the loss where it could be read.

        Raises:
            Unavailable: labels are not given token by token.
        """
        tokenizer = getattr(target.tokenizer, "tokenizer", target.tokenizer)
        codec = None if tokenizer is None else Codec(tokenizer)
        marks = _Marks.of(target, codec)
        spans = _spans(ids)
        parts = [*parts_of(batches.items)]
        ignored = {IGNORED, *_own_ignored(target)}
        shift, causal = (None, None) if targets is None else (targets.shift, targets.causal)
        task, moved = task_of(parts, frozenset(ignored), shift, causal) if parts else ("next", False)
        if targets is not None and targets.decoder:
            task, moved = "written", False
        elif shift is not None and (task == "tags" or not parts):
            task = "hidden" if shift == 0 and causal is False else "next"
        elif not parts:
            task = "written"
        # what a model predicts with certainty has no gradient either
        if targets is not None and targets.loss < _CERTAIN:
            targets = None
        traced = None if targets is None else next((p for p in parts if p.number == targets.batch), None)
        rule = LabelRule.of(targets, traced) if targets is not None and traced is not None else None
        rows: list[SupervisedRow] = []
        if rule is None and targets is not None:
            rows = [*_seen_rows(targets, spans)]
        else:
            ignored = ignored if rule is None else {IGNORED, *rule.ignored}
            for part in parts:
                rows += _rows(part, task, moved, counted(part, ignored, rule), marks, spans)
        if not rows or (not parts and all(_is_alike(row) for row in rows)):
            raise Unavailable("labels are not given token by token")
        return Supervision(
            rows=tuple(rows[:_MOST_ROWS]),
            task=task,
            moved=moved,
            ignored=frozenset(ignored),
            traced=frozenset(() if targets is None else targets.samples),
            by_value=bool(parts) and (targets is None or (rule is not None and not rule.path)),
            masked=ids is not None and ids.mask is not None,
            pad=marks.pad if ids is None or task == "written" else ids.pad,
            declared=task == "written" or _is_declared(ids, marks),
            eos=marks.eos,
            codec=codec,
            ids=ids,
        )

    def every_row(self) -> tuple[SupervisedRow, ...]:
        """All scanned rows that have a label at each place, where labels count by their value; else the first ones."""
        ids = self.ids
        if ids is None or not self.by_value or self.task not in ("tags", "hidden"):
            return self.rows
        columns = [c for c in ids.rows.labels if not c.is_floating and len(c.values) == len(ids.ids)]
        if len(columns) != 1 or len(ids.ids) != ids.rows.count:
            return self.rows
        rows = []
        for number, (tokens, labels) in enumerate(zip(ids.ids, columns[0].values, strict=True)):
            if len(tokens) != labels.numel() or labels.ndim != 1:
                return self.rows
            found, span = labels.tolist(), (int(ids.starts[number]), int(ids.stops[number]))
            rows.append(
                SupervisedRow(
                    sample=int(ids.samples[number]),
                    tokens=tuple(tokens.tolist()),
                    content=_within_span(number, len(tokens), {number: span}),
                    labels=tuple(found),
                    supervised=tuple(label not in self.ignored for label in found),
                )
            )
        return tuple(rows)

    def name(self, row: SupervisedRow) -> str:
        """How findings call a row, such as ``train[17]``."""
        return f"train[{row.sample}]" if self.ids is None else self.ids.rows.name(row.sample)


@dataclass(frozen=True)
class _Marks:
    """The ids that stand for padding and for the end of a text, by the tokenizer or the model's configuration."""

    pad: int | None
    eos: int | None

    @staticmethod
    def of(target: Target, codec: Codec | None) -> _Marks:
        if codec is not None and codec.roles:
            return _Marks(codec.roles.get("pad"), codec.roles.get("eos"))
        config = getattr(target.model, "config", None)
        table = input_embedding(target.model)
        size = None if table is None else len(table)
        found = [_within(getattr(config, name, None), size) for name in ("pad_token_id", "eos_token_id")]
        lookup = next(
            (m for m in target.model.modules() if isinstance(m, torch.nn.Embedding) and m.weight is table),
            None,
        )
        own = None if lookup is None else lookup.padding_idx
        return _Marks(found[0] if found[0] is not None else own, found[1])


def _rows(
    part: Part,
    task: Task,
    moved: bool,
    counts: torch.Tensor,
    marks: _Marks,
    spans: Mapping[int, tuple[int, int]],
) -> Iterator[SupervisedRow]:
    """The rows of a batch, with labels at the places of the tokens that they ask for."""
    own = task == "written" or part.ids is None
    tokens = part.labels if own else part.ids
    assert tokens is not None
    labels: list[list[int | None]] = part.labels.tolist()
    if task == "next":
        kept = part.labels[:, :-1] if moved else part.labels[:, 1:]
        labels = [[None, *row] for row in kept.tolist()]
        counts = counts[:, :-1] if moved else counts[:, 1:]
        counts = torch.cat([torch.zeros(len(counts), 1, dtype=torch.bool), counts], dim=1)
    written = _written(tokens, marks)
    for number, row in enumerate(tokens.tolist()):
        sample = part.first + number
        yield SupervisedRow(
            sample=sample,
            tokens=tuple(row),
            content=tuple(written[number].tolist()) if own else _within_span(sample, len(row), spans),
            labels=tuple(labels[number]),
            supervised=tuple(counts[number].tolist()),
        )


def _seen_rows(targets: TokenTargets, spans: Mapping[int, tuple[int, int]]) -> Iterator[SupervisedRow]:
    """The rows whose targets were read from the loss, where labels do not explain them."""
    shift = targets.shift or 0
    wanted = targets.targets.roll(shift, 1)
    if shift > 0:
        wanted[:, :shift] = -1
    elif shift < 0:
        wanted[:, shift:] = -1
    length = targets.ids.shape[1]
    for sample, tokens, asked in zip(targets.samples, targets.ids.tolist(), wanted.tolist(), strict=False):
        yield SupervisedRow(
            sample=sample,
            tokens=tuple(tokens),
            content=(True,) * length if targets.decoder else _within_span(sample, length, spans),
            labels=tuple(label if label >= 0 else None for label in asked),
            supervised=tuple(label >= 0 for label in asked),
        )


def _is_alike(row: SupervisedRow) -> bool:
    """Whether all labels of a row are the same, as where one label for the row meets an average over its tokens."""
    return len({label for label in row.labels if label is not None}) <= 1


def _spans(ids: TokenIds | None) -> dict[int, tuple[int, int]]:
    """By sample, where the content of its one row begins and ends."""
    if ids is None or len(ids.ids) != ids.rows.count:
        return {}
    return {
        int(sample): (int(start), int(stop))
        for sample, start, stop in zip(ids.samples, ids.starts, ids.stops, strict=True)
    }


def _within_span(sample: int, length: int, spans: Mapping[int, tuple[int, int]]) -> tuple[bool, ...]:
    start, stop = spans.get(sample, (0, length))
    return tuple(start <= place < stop for place in range(length))


def _written(tokens: torch.Tensor, marks: _Marks) -> torch.Tensor:
    """Which labels of sequences to write are no padding, which an end of text after the content is not."""
    content = tokens >= 0
    if marks.pad is None:
        return content
    after = runs_at_end(torch.where(content, tokens, marks.pad), marks.pad)
    after -= int(marks.pad == marks.eos)
    return content & (torch.arange(tokens.shape[1]) < tokens.shape[1] - after[:, None])


def _is_declared(ids: TokenIds | None, marks: _Marks) -> bool:
    return ids is not None and (ids.mask is not None or (ids.pad is not None and ids.pad == marks.pad))


def _own_ignored(target: Target) -> Sequence[int]:
    index = getattr(target.loss_fn, "ignore_index", None)
    return (index,) if isinstance(index, int) else ()


def _within(index: object, size: int | None) -> int | None:
    """An id of a configuration, the first of several, where the table has a row for it."""
    if isinstance(index, (list, tuple)) and index:
        index = index[0]
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        return None
    return index if size is None or index < size else None
