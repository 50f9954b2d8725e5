"""A data set that gives the same sample, or the same batch, whatever it is asked for."""

from __future__ import annotations

from debugkit import Finding, fail
from debugkit.data.rows import Rows
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples

from ._plain import are_samples, is_plain
from ._repeats import Repeats

COUNTED = ("classes", "multi-label")
"""The kinds of labels of which an input has one right one."""

FEWEST = 8
"""Samples from which on it is no coincidence that all are the same."""


def all_the_same(samples: Samples, batches: Batches, repeats: Repeats, *, mapped: bool) -> Finding | None:
    """The finding for inputs that never change, where all of the inputs can be read."""
    rows = repeats.rows
    count = len(repeats.samples) if rows.indices is not None else rows.count
    if count < FEWEST or not are_samples(rows) or not all(is_plain(batch) for batch in batches.items):
        return None
    hint = "use the index in `__getitem__`, and look at what the collate function returns"
    if len(set(rows.digests)) == 1:
        if _has_running_number(rows) or (not mapped and max(rows.batch_sizes) < FEWEST):
            return None
        same_labels = len(set(rows.label_digests)) <= 1
        certain = samples.origin in ("given", "named") or (
            samples.origin == "pair" and samples.labels.kind in COUNTED
        )
        if not same_labels and not certain:
            return None
        with_labels = "" if same_labels else ", while the labels differ"
        return fail(
            f"all {count:,} samples have the same inputs{with_labels}: there is nothing to learn from them",
            where=rows.name(0),
            hint=hint,
            samples=count,
            distinct=1,
        )
    if rows.indices is None or len(set(rows.indices)) < rows.count or not repeats.groups:
        return None
    return _same_batches(rows, repeats, hint)


def _same_batches(rows: Rows, repeats: Repeats, hint: str) -> Finding | None:
    """The finding for batches of different places that hold the same samples."""
    whole = [size for size in rows.batch_sizes if size == rows.batch_sizes[0]]
    starts = [sum(rows.batch_sizes[:number]) for number in range(len(whole))]
    found = {tuple(rows.digests[start : start + whole[0]]) for start in starts}
    if len(whole) < 3 or len(found) > 1 or not repeats.groups:
        return None
    return fail(
        f"each of {len(whole)} batches holds the same {whole[0]} samples, though the sampler draws others each time",
        where=rows.name(0),
        hint=hint,
        batches=len(whole),
        distinct=len(set(rows.digests)),
    )


def _has_running_number(rows: Rows) -> bool:
    """Whether an input beside the others counts the samples, which a model may learn from (a latent code each)."""
    return any(
        not column.is_floating and len(set(column.digests)) == len(column.digests)
        for column in rows.inputs
        if column.path not in rows.content and all(shape in ((), (1,)) for shape in column.shapes)
    )
