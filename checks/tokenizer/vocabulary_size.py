"""Ids that an embedding has no row for, and rows that no id can reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.data.rows import Rows
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.table_reads import TableRead, TableReads
from debugkit.testing import word_tokenizer
from debugkit.tokens.codec import Codec
from debugkit.weights.input_embedding import input_embedding

from ._id_range import IdRange, id_range, without_a_row
from ._vocabulary import tokens_without_a_row, unreachable_rows

_MOST_FINDINGS = 5
_MOST_NOTES = 4


@check
def vocabulary_size(
    target: Target,
    reads: TableReads | None,
    samples: Samples | None,
    eval_samples: EvalSamples | None,
    *,
    max_unreachable: Annotated[
        float,
        Field(gt=0, lt=1, description="share of an embedding's rows that may be beyond the tokenizer's ids"),
    ] = 0.25,
    spare_rows: Annotated[
        int, Field(ge=0, description="rows beyond the tokenizer's ids that are always allowed")
    ] = 128,
) -> Iterator[Finding]:
    """Ids that an embedding has no row for, and rows that no id can reach.

    A few samples run through the user's step, and every table that is read by whole numbers is recorded: token ids,
    token types, categories of a tabular model, labels that a decoder reads. By their values it is clear which part
    of the batch feeds which table, so all scanned samples of both splits can be held against its rows. The
    tokenizer's own ids are held against the embedding of its tokens.

    ## Why is this bad?
    An id without a row raises `IndexError` in the middle of an epoch; on a GPU it is a device-side assertion, after
    which nothing works and the traceback points elsewhere. An embedding far larger than the tokenizer wastes memory,
    and most often says that the tokenizer is another model's, or was not loaded.

    ## What to do
    After `tokenizer.add_tokens` call `model.resize_token_embeddings(len(tokenizer))`. Build a model of your own with
    `len(tokenizer)` rows, or one more than the largest category over all splits. Pad inputs with
    `tokenizer.pad_token_id`; `-100` is for labels.

    ## Known limits
    Ids that the model changes before it looks them up (hashing, a shift by category) are followed in the samples
    that run, not in the rest. A padded vocabulary (a multiple of 64 or 128 rows) is no finding.

    ## References
    - https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.resize_token_embeddings
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html
    """
    splits = [found.rows for found in (samples, eval_samples) if found is not None]
    tables = [read for read in reads.reads if read.kind == "rows"] if reads is not None else []
    ranges = [found for read in tables if (found := id_range(read, splits)) is not None]
    codec = _codec(target.tokenizer)
    token_table = _token_table(ranges, target.model, codec)
    if not tables and token_table is None:
        raise Unavailable("the step looks nothing up by whole numbers, and there is no tokenizer to compare")
    findings = [*_ids(ranges, tables, codec, token_table, target.model)]
    if codec is not None and token_table is not None:
        name, rows, highest = token_table
        if not findings:
            findings += tokens_without_a_row(codec, target.tokenizer, target.model, name, rows)
        findings += unreachable_rows(codec, name, rows, highest, max_unreachable, spare_rows)
    findings += _scores(reads, splits, samples, token_table)
    yield from findings
    yield from _looked_at(ranges, tables, codec, token_table)


def _codec(tokenizer: Any) -> Codec | None:
    return None if tokenizer is None else Codec(getattr(tokenizer, "tokenizer", tokenizer))


def _token_table(
    ranges: Sequence[IdRange], model: torch.nn.Module, codec: Codec | None
) -> tuple[str, int, int] | None:
    """The name and the rows of the table that takes the tokens, and the largest id that it was asked for."""
    if codec is None:
        return None
    whole = [r for r in ranges if r.read.source and r.read.source.part is None and not r.read.source.is_label]
    named = [r for r in whole if r.read.source and r.read.source.path.rpartition(".")[2] == "input_ids"]
    if named or whole:
        found = max(named or whole, key=lambda r: r.read.rows)
        return found.read.table, found.read.rows, found.highest
    weight = input_embedding(model)
    if weight is None:
        return None
    name = next((name for name, p in model.named_parameters() if p is weight), "the input embedding")
    return name.removesuffix(".weight"), len(weight), -1


def _ids(
    ranges: Sequence[IdRange],
    tables: Sequence[TableRead],
    codec: Codec | None,
    token_table: tuple[str, int, int] | None,
    model: torch.nn.Module,
) -> Iterator[Finding]:
    """Ids in the data, or made of them by the step, that a table has no row for."""
    shown = 0
    for found in ranges:
        if not found.fits and shown < _MOST_FINDINGS:
            own = codec is not None and token_table is not None and found.read.table == token_table[0]
            known = codec.size if own and codec is not None else None
            yield from without_a_row(found, known, hasattr(model, "resize_token_embeddings"))
            shown += 1
    judged = {found.read.table for found in ranges if not found.fits}
    for read in tables:
        if read.fits or read.positions is not None or read.table in judged or shown >= _MOST_FINDINGS:
            continue
        value = read.lowest if read.lowest < 0 else read.highest
        shown += 1
        yield fail(
            f"`{read.table}` has {read.rows:,} rows and the step asks for row {value}: the lookup raises",
            where=None if read.bad_sample is None else f"the first batch, sample {read.bad_sample}",
            location=read.location,
            hint=f"give `{read.table}` a row for every number that can come, {read.highest + 1:,} for this batch"
            if value >= 0
            else "number the values from 0",
            rows=read.rows,
            lowest=read.lowest,
            highest=read.highest,
        )


def _scores(
    reads: TableReads | None,
    splits: Sequence[Rows],
    samples: Samples | None,
    token_table: tuple[str, int, int] | None,
) -> Iterator[Finding]:
    """Tokens to predict that an output layer smaller than the embedding has no score for."""
    if reads is None or samples is None:
        return
    inputs = [read.rows for read in reads.reads if read.kind == "rows" and read.source is not None]
    largest = max([*inputs, token_table[1] if token_table else 0], default=0)
    for read in reads.reads:
        if read.kind != "classes" or read.source is None or read.rows >= largest:
            continue
        if read.source.is_label and samples.labels.kind != "tokens":
            continue
        if not read.source.is_label and _is_one_per_row(read.source.path, splits):
            continue
        found = id_range(read, splits)
        if found is not None and found.highest >= read.rows and found.outside:
            rows, numbers, value = found.outside[0]
            if value >= read.rows:
                yield fail(
                    f"the model gives {read.rows:,} scores and the labels ask for token {value}, while its embedding "
                    f"has {largest:,} rows: {len(numbers):,} samples hold a token that can be read and not written",
                    where=rows.name(numbers[0], read.source.path),
                    location=read.location,
                    hint="give the output layer as many outputs as the embedding has rows, or tie their weights",
                    scores=read.rows,
                    rows=largest,
                )
                return


def _is_one_per_row(path: str, splits: Sequence[Rows]) -> bool:
    """Whether each sample has a single number there, as the place of an answer in its row is."""
    columns = [rows.columns[path] for rows in splits if path in rows.columns]
    return all(value.numel() == 1 for column in columns for value in column.values)


def _looked_at(
    ranges: Sequence[IdRange],
    tables: Sequence[TableRead],
    codec: Codec | None,
    token_table: tuple[str, int, int] | None,
) -> Iterator[Finding]:
    for found in ranges[:_MOST_NOTES]:
        source = found.read.source
        yield note(
            f"`{found.read.table}` has {found.read.rows:,} rows; `{source.name if source else ''}` asks for "
            f"{found.lowest:,} to {found.highest:,} in {found.samples:,} samples",
            rows=found.read.rows,
            highest=found.highest,
        )
    if len(ranges) > _MOST_NOTES:
        yield note(f"{len(ranges) - _MOST_NOTES} more tables have a row for every id")
    if codec is not None and codec.size is not None and token_table is not None:
        yield note(f"the tokenizer has {codec.size:,} ids and `{token_table[0]}` {token_table[1]:,} rows")
    elif not ranges and tables:
        yield note(f"{len(tables)} tables are read by numbers that the step makes itself; those that ran fit")


_WORDS = ("red", "green", "blue", "round", "flat", "long", "warm", "cold")


class _Classifier(torch.nn.Module):
    """Logits ``[batch, 2]`` from the mean vector of all ids that are not 0."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(rows, 32, padding_idx=0)
        self.hidden = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        seen = (ids != 0).unsqueeze(-1).float()
        pooled = (self.embedding(ids) * seen).sum(1) / seen.sum(1)
        logits: torch.Tensor = self.head(torch.relu(self.hidden(pooled)))
        return logits


def _texts(tokenizer: Any, extra: str | None = None) -> DataLoader[tuple[torch.Tensor, ...]]:
    """64 different rows of words: of the first four words for class 0, of the others for class 1."""
    generator = torch.Generator().manual_seed(0)
    rows, labels = [], []
    for number in range(64):
        words = _WORDS[4 * (number % 2) :][:4]
        picks = torch.randint(4, (7,), generator=generator).tolist()
        text = " ".join([words[pick] for pick in picks] + ([extra] if extra and number > 40 else []))
        row = tokenizer(text)["input_ids"]
        rows.append(row + [tokenizer.pad_token_id] * (10 - len(row)))
        labels.append(number % 2)
    return DataLoader(TensorDataset(torch.tensor(rows), torch.tensor(labels)), batch_size=16, shuffle=True)


def good() -> Target:
    tokenizer = word_tokenizer(_WORDS)
    return Target(
        _Classifier(len(tokenizer)), _texts(tokenizer), torch.nn.CrossEntropyLoss(), tokenizer=tokenizer
    )


def good_padded_vocabulary() -> Target:
    tokenizer = word_tokenizer(_WORDS)
    return Target(_Classifier(64), _texts(tokenizer), torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def bad_added_token_without_a_row() -> Target:
    tokenizer = word_tokenizer(_WORDS)
    model = _Classifier(len(tokenizer))
    tokenizer.add_tokens(["<price>"])
    return Target(model, _texts(tokenizer, "<price>"), torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def bad_added_token_not_in_the_data() -> Target:
    tokenizer = word_tokenizer(_WORDS)
    model = _Classifier(len(tokenizer))
    tokenizer.add_tokens(["<price>"])
    return Target(model, _texts(tokenizer), torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def bad_category_without_a_row() -> Target:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 13, (96, 6), generator=generator)
    y = (x.sum(1) > 39).long()
    return Target(
        _Classifier(12), DataLoader(TensorDataset(x, y), batch_size=16), torch.nn.CrossEntropyLoss()
    )


def bad_rows_that_no_id_reaches() -> Target:
    tokenizer = word_tokenizer(_WORDS)
    return Target(_Classifier(5000), _texts(tokenizer), torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)
