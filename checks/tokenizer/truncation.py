"""Texts that are cut, answers that are cut off, rows that are longer than the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.data.labels import IGNORED
from debugkit.data.shares import lower_bound, percent
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.source_texts import SourceTexts
from debugkit.probes.table_reads import TableReads
from debugkit.probes.token_ids import TokenIds
from debugkit.testing import word_tokenizer

from ._cut_answers import cut_answers
from ._cut_rows import are_pieces, are_windows, cut_rows
from ._positions import rotary_limit, too_long

_Z = 2.33  # 99 % on one side
_MULTIPLE = 8


@check
def truncation(
    target: Target,
    samples: Samples,
    ids: TokenIds | None,
    reads: TableReads | None,
    texts: SourceTexts | None,
    eval_samples: EvalSamples | None,
    *,
    max_cut: Annotated[float, Field(gt=0, lt=1, description="share of the rows that may be cut")] = 0.05,
) -> Iterator[Finding]:
    """Texts that are cut, answers that are cut off, rows that are longer than the model.

    Where the texts are in the batch or in the data set behind the loader, they are encoded again and compared with
    the rows. Otherwise rows are cut where those of the greatest length lack the token that ends all others, or are
    far more than those of any length near it. Lengths are held against the tables of positions that the step
    reads.

    ## Why is this bad?
    A model can't learn what it is not shown, and what is cut is often what matters: the verdict at the end of a
    review, the answer after a long prompt. A row longer than the positions of the model raises in the middle of an
    epoch; with rotary positions it raises nothing, and the model guesses.

    ## What to do
    Choose `max_length` from the lengths of the data (the 95th percentile or more), or split long texts into
    windows (`return_overflowing_tokens=True, stride=...`). For prompts with answers cut the prompt.

    ## Known limits
    Without texts a corpus of pieces can look as if it were cut: rows that all have one length, windows that overlap,
    and rows of a language model whose neighbours in the data set are alike are taken for pieces. A limit that shows in fewer rows than
    lengths near it is not seen.

    ## References
    - https://huggingface.co/docs/transformers/pad_truncation
    - https://github.com/huggingface/trl/issues/644
    """
    splits = [found.rows for found in (samples, eval_samples) if found is not None]
    counted = bool(reads is not None and reads.positions)
    if ids is None and not counted:
        raise Unavailable("the batches hold no token ids, and the step counts no positions")
    yield from too_long(reads, splits, ids, target.model)
    if ids is not None:
        answers = [*cut_answers(ids, samples, max_cut)]
        yield from answers
        if not any(finding.level != "note" for finding in answers):
            yield from _cut_texts(ids, texts, samples, max_cut, _limit(target, reads, ids))
        yield from _cut_targets(ids, samples, max_cut)
        longest = int(ids.lengths.max(initial=0))
        yield note(
            f"{len(ids.ids):,} rows have {int(np.median(ids.lengths)):,} tokens in the median and at most {longest:,}",
            longest=longest,
        )
    for read in reads.positions[:1] if reads is not None else ():
        if read.positions is not None:
            yield note(f"`{read.table}` has positions for {read.positions.limit:,}")


def _limit(target: Target, reads: TableReads | None, ids: TokenIds) -> int | None:
    """How long rows may become."""
    tables = [r.positions.limit for r in (reads.positions if reads else ()) if r.positions is not None]
    return min(tables) if tables else rotary_limit(target.model)


def _cut_texts(
    ids: TokenIds, texts: SourceTexts | None, samples: Samples, max_cut: float, limit: int | None
) -> Iterator[Finding]:
    if texts is not None:
        yield from _known(ids, texts, max_cut, limit)
        return
    ends = [int(row[stop - 1]) if stop else None for row, stop in zip(ids.ids, ids.stops, strict=True)]
    found = cut_rows(ids.lengths, ends)
    if found is None:
        return
    share = len(found.rows) / len(ids.ids)
    said = (
        f"{len(found.rows):,} of {len(ids.ids):,} rows ({percent(share)}) have exactly {found.length:,} tokens, the "
        f"most of all, and seem cut: {found.why}"
    )
    if lower_bound(share, len(ids.ids), _Z) <= max_cut:
        return
    per_token = samples.labels.kind == "tokens"
    if are_windows(ids, found.rows) or (per_token and are_pieces(ids.lengths, _places(ids))):
        yield note(f"{said}; they may as well be pieces of longer texts, like their neighbours")
    elif ids.codec is None and samples.labels.kind == "tokens":
        yield note(f"{said}; without a tokenizer it is not known that they are texts")
    else:
        room = f", up to the {limit:,} positions of the model" if limit and limit > found.length else ""
        yield warn(
            said,
            where=ids.name(int(found.rows[0])),
            hint=f"raise `max_length`{room}, or split long texts into windows (`return_overflowing_tokens=True`)",
            cut=share,
            length=found.length,
        )


def _places(ids: TokenIds) -> Sequence[int] | None:
    """The place of each row in the data set."""
    if ids.rows.indices is None or len(ids.ids) != ids.rows.count:
        return None
    return [ids.rows.indices[int(sample)] for sample in ids.samples]


def _known(ids: TokenIds, texts: SourceTexts, max_cut: float, limit: int | None) -> Iterator[Finding]:
    """Rows that are held against their texts."""
    rows, cut = texts.rows, texts.cut
    share = len(cut) / len(rows)
    needed = sorted(row.whole + row.around for row in rows)
    enough = needed[min(len(needed) - 1, int((1 - max_cut) * len(needed)))]
    enough = -(-enough // _MULTIPLE) * _MULTIPLE
    if not cut or lower_bound(share, len(rows), _Z) <= max_cut:
        yield note(
            f"{len(cut) or 'none'} of {len(rows)} texts that were encoded again {'are' if len(cut) > 1 else 'is'} cut"
        )
        return
    gone = np.median([1 - row.kept / row.whole for row in cut])
    side = "end" if sum(row.end for row in cut) >= len(cut) / 2 else "beginning"
    fits = limit is None or enough <= limit
    yield warn(
        f"{len(cut)} of {len(rows)} texts ({percent(share)}) are cut: {percent(float(gone))} of such a text is missing "
        f"in the median, at its {side}; the longest needs {needed[-1]:,} tokens",
        where=ids.name(cut[0].row),
        hint=f"`max_length={enough}` cuts {percent(max_cut)} or less"
        if fits
        else f"the model has {limit:,} positions and {enough:,} are needed: split long texts into windows "
        "(`return_overflowing_tokens=True`)",
        cut=share,
        needed=enough,
    )


def _cut_targets(ids: TokenIds, samples: Samples, max_cut: float) -> Iterator[Finding]:
    """Sequences to write that have a length of their own."""
    for column in samples.rows.labels:
        ragged = all(value.ndim == 1 for value in column.values) and not column.is_floating
        if (
            samples.labels.kind != "tokens"
            or not ragged
            or column.shapes == samples.rows.columns[ids.path].shapes
        ):
            continue
        ignored = {IGNORED} | ({ids.pad} if ids.pad is not None and ids.certain else set())
        bare = [[index for index in value.tolist() if index not in ignored] for value in column.values]
        lengths = np.array([len(row) for row in bare], int)
        found = cut_rows(lengths, [row[-1] if row else None for row in bare])
        share = len(found.rows) / len(bare) if found is not None else 0.0
        if found is not None and lower_bound(share, len(bare), _Z) > max_cut:
            yield warn(
                f"{len(found.rows):,} of {len(bare):,} rows of `{column.path}` ({percent(share)}) have exactly "
                f"{found.length:,} tokens, the most of all, and seem cut: {found.why}",
                where=samples.rows.name(column.samples[int(found.rows[0])], column.path),
                hint="raise the `max_length` of the labels (`max_target_length`)",
                cut=share,
                length=found.length,
            )


_WORDS = ("rain", "wind", "snow", "hail", "sun", "heat", "sand", "dust", "with", "and", "then", "little")


class _Reader(torch.nn.Module):
    """Logits ``[batch, 2]`` from words and their places."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(len(_WORDS) + 4, 32)
        self.places = torch.nn.Embedding(positions, 32)
        self.hidden = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.words(input_ids) + 0.1 * self.places(places)
        seen = attention_mask.unsqueeze(-1).float()
        logits: torch.Tensor = self.head(torch.relu(self.hidden((hidden * seen).sum(1) / seen.sum(1))))
        return logits


def _target(max_length: int | None, *, keep_texts: bool = True, positions: int = 64) -> Target:
    """Weather reports of 8 to 39 words, encoded in the collate function or before."""
    tokenizer = word_tokenizer(_WORDS)
    generator = torch.Generator().manual_seed(0)
    data: list[tuple[Any, int]] = []
    for number in range(96):
        label, length = number % 2, int(torch.randint(8, 40, (1,), generator=generator))
        words = [*_WORDS[4 * label :][:4], *_WORDS[8:]]
        text = " ".join(words[pick] for pick in torch.randint(8, (length,), generator=generator).tolist())
        data.append((text if keep_texts else _encode(tokenizer, [text], max_length)["input_ids"][0], label))

    def collate(picked: list[tuple[Any, int]]) -> dict[str, Any]:
        rows = [row for row, _ in picked]
        encoded = _encode(tokenizer, rows, max_length) if keep_texts else {"input_ids": rows}
        batch = dict(tokenizer.pad(encoded, return_tensors="pt"))
        batch.pop("token_type_ids", None)
        return {**batch, "labels": torch.tensor([label for _, label in picked])}

    loader: Any = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    return Target(_Reader(positions), loader, torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def _encode(tokenizer: Any, texts: list[str], max_length: int | None) -> Any:
    return tokenizer(texts, truncation=max_length is not None, max_length=max_length)


def good() -> Target:
    return _target(None)


def good_encoded_before() -> Target:
    return _target(None, keep_texts=False)


def bad_most_texts_cut() -> Target:
    return _target(16)


def bad_cut_before() -> Target:
    return _target(20, keep_texts=False)


def bad_longer_than_the_model() -> Target:
    return _target(None, positions=32)
