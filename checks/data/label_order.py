"""Labels that come sorted, or in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.loaders import deciding_sampler, inner_loader, is_map_style
from debugkit.data.shares import percent
from debugkit.probes.label_use import LabelUse
from debugkit.probes.samples import Samples, ignored_labels
from debugkit.testing import blobs, mlp

from ._label_order import (
    MAX_DRIFT,
    MAX_EXCESS,
    LabelSequence,
    Purity,
    Runs,
    comes_in_blocks,
    in_storage_order,
    label_sequences,
)
from ._series import is_series

_FEWEST = 16
_BY_CHANCE = -6.0
_FEWEST_BATCHES = 4
_FEWEST_NUMBERS = 64
_SORTED_NUMBERS = 0.999
_KINDS = {
    "tags": "one per token",
    "tokens": "tokens to generate",
    "pixels": "one per position of a map",
}


@check
def label_order(
    samples: Samples,
    target: Target,
    use: LabelUse | None,
    *,
    max_excess: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="how much more often than by chance two samples of a batch may have the same class: 0 is "
            "chance, 1 is one class per batch; two classes per batch out of many give 0.5",
        ),
    ] = MAX_EXCESS,
    max_drift: Annotated[
        float,
        Field(
            gt=0, lt=1, description="the same where samples of batches that follow each other agree as well"
        ),
    ] = MAX_DRIFT,
) -> Iterator[Finding]:
    """Labels come sorted, or in blocks.

    The classes of the scanned samples are read in loader order. Runs of one class show whether the labels are
    sorted; how often two samples of the same batch share their class, against random orders of the same labels,
    shows whether they come in blocks. Small batches are judged in groups of 16 samples. Targets that are numbers
    are held against their position.

    ## Why is this bad?
    Gradient descent takes a batch for a picture of the data set. When every batch holds one class, each step
    makes the model answer that class and forget the others; the loss looks low within a block and jumps at its
    end, BatchNorm sees the statistics of one class, and what was last in the file wins.

    ## What to do
    `DataLoader(..., shuffle=True)`. For a stream, shuffle the rows once before they are written; a shuffle buffer
    helps only where it is longer than the longest run of one class.

    ## Known limits
    Tags, pixels and tokens to generate are not judged. Classes that take turns batch by batch, as real and fake
    images do, are taken for intended. Windows of a series are in their natural order and are not judged by
    their targets.

    ## References
    - https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader
    - Bottou 2012, https://doi.org/10.1007/978-3-642-35289-8_25
    """
    found = [*label_sequences(samples, use, ignored_labels(target))]
    if not found:
        raise Unavailable(_reason(samples))
    for sequence in found:
        if sequence.classes:
            yield from _judge_classes(sequence, samples, target, max_excess, max_drift)
        else:
            yield from _judge_numbers(sequence, samples, target)


def _reason(samples: Samples) -> str:
    kind = samples.labels.kind
    if kind in _KINDS:
        return f"the labels are {_KINDS[kind]}, which have no order of classes"
    if kind in ("none", "other"):
        return "the batches hold no labels that can be ordered; a mapping needs `labels`, a tuple a tensor at its end"
    return "nothing in the batches is known to be one label per sample"


def _judge_classes(
    sequence: LabelSequence, samples: Samples, target: Target, max_excess: float, max_drift: float
) -> Iterator[Finding]:
    runs = Runs.of(sequence.values)
    batches = len(set(sequence.batches.tolist()))
    if runs.classes < 2:
        yield _single(sequence, samples)
        return
    if batches < 2 or runs.samples < _FEWEST or 4 * runs.classes > runs.samples:
        yield note(
            f"{runs.samples:,} labels of {runs.classes} classes in {batches} {_plural('batch', batches)} do not show "
            "an order",
            where=sequence.path,
        )
        return
    purity = Purity.of(sequence)
    facts: dict[str, Any] = {
        "samples": runs.samples,
        "classes": runs.classes,
        "runs": runs.runs,
        "pure_batches": purity.pure,
        "batches": purity.batches,
        "share": purity.share,
        "chance": purity.chance,
        "excess": purity.excess,
        "drift": purity.drift,
    }
    shares = f"{percent(purity.share)} of the time, {percent(purity.chance)} by chance"
    pure = f"{purity.pure} of {purity.batches} {_batches(purity)} hold a single class"
    if runs.runs == runs.classes and runs.sorted_by_chance < _BY_CHANCE:
        yield fail(
            f"the labels come sorted: {runs.classes} classes in {runs.runs} unbroken runs over {runs.samples:,} "
            f"samples, and {pure}; each class is unlearned while the next is learned",
            where=sequence.path,
            hint=_lever(target),
            **facts,
        )
    elif purity.in_turn:
        yield note(
            f"each batch holds a single class, and {runs.classes} classes take turns", where=sequence.path
        )
    elif comes_in_blocks(purity, max_excess, max_drift):
        whole = 2 * runs.runs <= purity.batches and in_storage_order(samples.rows)
        make: Callable[..., Finding] = fail if whole else warn
        yield make(
            f"the labels come in blocks: two samples of a batch have the same class {shares}, and {pure}; each step "
            "pulls the model to few classes",
            where=sequence.path,
            hint=_lever(target),
            **facts,
        )
    else:
        yield note(
            f"{runs.classes} classes are mixed: two samples of a batch have the same class {shares} "
            f"({runs.samples:,} samples in {purity.batches} {_batches(purity)})",
            where=sequence.path,
            **facts,
        )


def _single(sequence: LabelSequence, samples: Samples) -> Finding:
    """One class among the samples that were read: the data set's only one, or the first of several."""
    seen = len(sequence.values)
    if not seen:
        return note("every label that was scanned is ignored", where=sequence.path)
    only = sequence.name(sequence.values[0])
    spread = samples.spread
    if spread is None or spread.kind != "classes" or len(spread.counts or ()) < 2 or sequence.names:
        return note(f"all {seen:,} labels are {only}, so there is no order", where=sequence.path)
    counts = spread.counts or {}
    share = (counts.get(int(sequence.values[0]), 0) + 1) / (spread.total + 2)
    if seen * np.log10(share) > _BY_CHANCE:
        return note(
            f"the first {seen:,} labels are {only}, which is most of the data set ({percent(share)})",
            where=sequence.path,
        )
    return fail(
        f"the labels come sorted: the first {seen:,} samples are all of class {only}, while {spread.total} drawn from "
        f"the whole data set hold {len(counts)} classes",
        where=sequence.path,
        hint="`DataLoader(..., shuffle=True)`",
        samples=seen,
        classes=len(counts),
    )


def _judge_numbers(sequence: LabelSequence, samples: Samples, target: Target) -> Iterator[Finding]:
    values = sequence.values
    batches = len(set(sequence.batches.tolist()))
    distinct = len(set(values.tolist()))
    if len(values) < _FEWEST_NUMBERS or batches < _FEWEST_BATCHES or distinct < _FEWEST_NUMBERS / 4:
        yield note(
            f"{len(values):,} targets in {batches} {_plural('batch', batches)} do not show an order",
            where=sequence.path,
        )
        return
    correlation = _rank_correlation(values)
    said = f"rank correlation of target and position {correlation:.3f} over {len(values):,} samples"
    if abs(correlation) < _SORTED_NUMBERS or is_series(samples.rows):
        yield note(said, where=sequence.path, rank_correlation=correlation)
        return
    yield warn(
        f"the targets {'rise' if correlation > 0 else 'fall'} from batch to batch ({said}): no batch looks like the "
        "data set, and the model follows the latest range",
        where=sequence.path,
        hint=_lever(target),
        rank_correlation=correlation,
        samples=len(values),
    )


def _rank_correlation(values: np.ndarray[Any, Any]) -> float:
    """Spearman's rank correlation of values and their positions, equal values at their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def _lever(target: Target) -> str:
    loader = inner_loader(target.train_loader)
    if loader is None:
        return "shuffle the samples before they are put into batches"
    if not is_map_style(loader):
        return (
            "shuffle the rows before they are streamed; a shuffle buffer has to be longer than the longest run of "
            "one class"
        )
    if isinstance(deciding_sampler(loader), SequentialSampler):
        return "`DataLoader(..., shuffle=True)`"
    return "let the sampler draw in a random order"


def _batches(purity: Purity) -> str:
    if purity.block is None:
        return _plural("batch", purity.batches)
    return f"groups of {purity.block} consecutive samples"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}es"


def _columns(y: torch.Tensor) -> TensorDataset:
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 3 * y.float().flatten()
    return TensorDataset(x, y)


class _Stream(IterableDataset[Any]):
    """Rows class by class through a shuffle buffer.

    Args:
        buffer: how many rows are shuffled among each other.
    """

    def __init__(self, buffer: int) -> None:
        rows = _columns(torch.arange(4).repeat_interleave(64))
        self._rows = [rows[place] for place in range(len(rows))]
        self._buffer = buffer

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._rows), self._buffer):
            block = self._rows[start : start + self._buffer]
            yield from (block[place] for place in torch.randperm(len(block)).tolist())


def good() -> Target:
    return Target(mlp(), blobs(128), torch.nn.CrossEntropyLoss())


def good_stream_through_a_large_buffer() -> Target:
    return Target(mlp(classes=4), DataLoader(_Stream(256), batch_size=16), torch.nn.CrossEntropyLoss())


def bad_sorted() -> Target:
    y = torch.arange(4).repeat_interleave(48)
    return Target(mlp(classes=4), DataLoader(_columns(y), batch_size=16), torch.nn.CrossEntropyLoss())


def bad_stream_through_a_small_buffer() -> Target:
    return Target(mlp(classes=4), DataLoader(_Stream(80), batch_size=16), torch.nn.CrossEntropyLoss())


def bad_sorted_targets() -> Target:
    y = torch.linspace(-1, 1, 160).unsqueeze(1)
    return Target(mlp(classes=1), DataLoader(_columns(y), batch_size=16), torch.nn.MSELoss())
