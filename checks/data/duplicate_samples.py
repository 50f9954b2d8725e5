"""The same sample again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, TensorDataset

from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.data.loaders import inner_loader, is_map_style
from debugkit.data.rows import Rows
from debugkit.data.shares import percent
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.train_contents import TrainContents
from debugkit.testing import blobs, mlp

from ._one_sample import COUNTED, FEWEST, all_the_same
from ._passages import edited_copies
from ._plain import are_samples
from ._repeats import Repeats, find_repeats

_BALANCED = 1.2
_IMBALANCED = 1.5
_SHOWN = 3


@check
def duplicate_samples(
    target: Target,
    samples: Samples,
    contents: TrainContents,
    batches: Batches,
    *,
    max_share: Annotated[
        float, Field(ge=0, lt=1, description="share of samples that may repeat an earlier one")
    ] = 0.05,
    max_conflicts: Annotated[
        float, Field(ge=0, lt=1, description="share of samples that may have a twin with another label")
    ] = 0.002,
) -> Iterator[Finding]:
    """The same sample comes again and again.

    Samples are compared by all their inputs. One that holds so little that a twin is to be expected (a few
    categories, a short text, a blank image) does not count, nor does one that the sampler draws again. Texts
    and token ids are also compared for copies with a few words changed. Data sets that fetch single samples
    are looked at beyond the scan.

    ## Why is this bad?
    Repeated samples weigh more in training than they should, and a later split puts some of them on both
    sides, so that the evaluation measures memory. The same input with two labels can't be learned: the loss
    has a floor above 0. A data set that ignores its index teaches a single sample, and the loss still falls.

    ## What to do
    Drop the repeats before the data is split (`DataFrame.drop_duplicates()`), and look at the ones whose labels
    differ. If every sample is the same, use the index in `__getitem__`. To show rare classes more often, use a
    sampler (`WeightedRandomSampler`) rather than copies.

    ## Known limits
    Of large data sets a part is compared, and twins further apart go unseen. Images and tables are compared
    exactly: a copy that was scaled, compressed or turned again is not seen.

    ## References
    - https://arxiv.org/abs/2107.06499
    - https://docs.deepchecks.com/stable/tabular/auto_checks/data_integrity/plot_data_duplicates.html
    """
    rows = contents.rows
    if not rows.digests:
        raise Unavailable("the batches hold no inputs that can be compared sample by sample")
    loader = inner_loader(target.train_loader)
    mapped = loader is not None and is_map_style(loader)
    repeats = find_repeats(rows, loader.dataset if loader is not None and mapped else None)
    count = len(repeats.samples)
    if (same := all_the_same(samples, batches, repeats, mapped=mapped)) is not None:
        yield same
        return
    if not are_samples(rows):
        raise Unavailable("parts of a batch differ in length, so it is not known what one sample is")
    if count < FEWEST:
        raise Unavailable(
            f"{count} samples are too few to tell repeats from chance; at least {FEWEST} are needed"
        )
    if (copies := _copies_by_workers(loader, repeats)) is not None:
        yield copies
        return
    findings = [*_judge(samples, contents, repeats, max_share, max_conflicts)]
    yield from findings
    yield from _asides(repeats)


def _judge(
    samples: Samples, contents: TrainContents, repeats: Repeats, max_share: float, max_conflicts: float
) -> Iterator[Finding]:
    rows, count = repeats.rows, len(repeats.samples)
    if repeats.is_toy:
        yield note(
            f"{count:,} samples are {repeats.distinct} different ones, {count / repeats.distinct:.0f} times each, as in a "
            "toy set or where the index is folded",
            distinct=repeats.distinct,
        )
        return
    if repeats.is_several_labels_each:
        each = len(repeats.groups[0])
        yield note(
            f"nearly every input comes {each} times, and labels differ now and then, as with {each} annotators",
            where=_places(rows, repeats.groups[0]),
            repeats=count - len(repeats.groups),
        )
        return
    known = samples.labels.kind in COUNTED and samples.origin != "last"
    conflicts = repeats.disagreeing
    if conflicts and known:
        share = sum(map(len, conflicts)) / count
        yield (warn if share > max_conflicts else note)(
            f"{sum(map(len, conflicts)):,} of {contents.scanned} ({percent(share)}) have a twin with the same inputs "
            f"and another label, {_examples(rows, conflicts)}: at most one of the labels is right, and the loss can't "
            "reach 0",
            where=rows.name(conflicts[0][0]),
            hint="look at these samples and keep one label for each input",
            conflicting=sum(map(len, conflicts)),
            share=share,
        )
    elif conflicts:
        come = "input comes" if len(conflicts) == 1 else "inputs come"
        yield note(f"{len(conflicts):,} {come} with several targets, {_examples(rows, conflicts)}")
    exact = repeats.repeats
    extra = sum(len(group) - 1 for group in exact)
    edited = _edited(samples, repeats)
    share = (extra + len(edited)) / count
    if share > max_share and (even := _evens_out(samples, repeats)) is not None:
        yield even
    elif share > max_share:
        yield warn(
            f"{_said(extra, len(edited), contents, count)}, {_examples(rows, [*exact, *edited])}: they weigh more in "
            "training, and a split between them puts the same sample on both sides",
            where=rows.name((exact or edited)[0][0]),
            hint="drop the repeats before the data is split, for example with `DataFrame.drop_duplicates()`",
            repeats=extra,
            near_repeats=len(edited),
            largest_group=len(exact[0]) if exact else 1,
            share=share,
        )
    elif extra or edited:
        yield note(
            f"{_said(extra, len(edited), contents, count)}, {_examples(rows, [*exact, *edited])}",
            repeats=extra,
            near_repeats=len(edited),
            share=share,
        )
    elif not conflicts and not repeats.by_chance:
        among = f"{count:,} different training samples" if repeats.again else contents.scanned
        yield note(f"no repeats among {among} (by {_listed(rows.content)})", repeats=0)


def _asides(repeats: Repeats) -> Iterator[Finding]:
    """What does not count, and why."""
    if repeats.by_chance:
        yield note(
            f"{repeats.by_chance:,} of {len(repeats.samples):,} samples repeat an earlier one, and hold so little that "
            "this is to be expected",
            by_chance=repeats.by_chance,
        )
    if repeats.again:
        yield note(
            f"{repeats.again:,} times a sample is drawn again, by the sampler or the loader; it is counted once",
            again=repeats.again,
        )


def _copies_by_workers(loader: DataLoader[Any] | None, repeats: Repeats) -> Finding | None:
    """Iterable data that each worker reads from its start is another check's finding."""
    if loader is None or is_map_style(loader) or loader.num_workers < 2:
        return None
    if not repeats.again and not repeats.groups:
        return None
    return note(
        f"samples repeat, as they do where each of {loader.num_workers} workers reads the whole stream; see "
        "`loader-randomness`"
    )


def _edited(samples: Samples, repeats: Repeats) -> list[Sequence[int]]:
    """Pairs of samples with nearly the same text and the same label."""
    rows = repeats.rows
    first: dict[bytes, int] = {}
    for sample in repeats.samples:
        first.setdefault(rows.digests[sample], sample)
    found = edited_copies(
        [rows], rows.content, [[*first.values()]], same_labels=samples.labels.kind != "tokens"
    )
    return [(match.other, match.row) for match in found if match.relation == "copy"]


def _evens_out(samples: Samples, repeats: Repeats) -> Finding | None:
    """The note for small classes that were copied until all are as large."""
    labels = repeats.rows.label_digests
    if samples.labels.kind != "classes" or not labels:
        return None
    with_copies = Counter(labels[sample] for sample in repeats.samples)
    left_out = {sample for group in repeats.repeats for sample in group[1:]}
    without = Counter(labels[sample] for sample in repeats.samples if sample not in left_out)
    if len(with_copies) < 2 or max(with_copies.values()) > _BALANCED * min(with_copies.values()):
        return None
    if max(without.values()) < _IMBALANCED * min(without.values()):
        return None
    return note(
        f"{len(left_out):,} of {len(repeats.samples):,} samples are copies that make the classes equally frequent; make "
        "sure that they were made after the split",
        repeats=len(left_out),
    )


def _said(extra: int, edited: int, contents: TrainContents, count: int) -> str:
    parts = []
    if extra:
        parts.append(f"{extra:,} repeat an earlier one")
    if edited:
        parts.append(f"{edited:,} repeat {'it' if extra else 'an earlier one'} with a few words changed")
    return f"of {contents.scanned}, {' and '.join(parts)} ({percent((extra + edited) / count)})"


def _examples(rows: Rows, groups: Sequence[Sequence[int]]) -> str:
    """Such as ``train[3] = train[17]``; with the size of the first group where it is large."""
    shown = "; ".join(_places(rows, group) for group in groups[: _SHOWN - 1])
    size = len(groups[0])
    return f"{shown} ({size} times)" if size > 2 and len(groups) == 1 else shown


def _places(rows: Rows, group: Sequence[int]) -> str:
    by_place = sorted(group, key=lambda sample: sample if rows.indices is None else rows.indices[sample])
    names = [rows.name(sample) for sample in by_place[:_SHOWN]]
    more = f" and {len(group) - _SHOWN:,} more" if len(group) > _SHOWN else ""
    return f"`{' = '.join(names)}`{more}"


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:_SHOWN] if path)
    return (shown + (", ..." if len(paths) > _SHOWN else "")) or "their values"


def good() -> Target:
    return Target(mlp(), blobs(128), torch.nn.CrossEntropyLoss())


def good_few_categories() -> Target:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (256, 4), generator=generator)
    y = bits.sum(1) % 2
    data = DataLoader(TensorDataset(bits.float(), y), batch_size=32, shuffle=True)
    return Target(mlp(4), data, torch.nn.CrossEntropyLoss())


class _FirstOnly(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A data set that forgets its index."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[0], self.y[0]


def bad_index_ignored() -> Target:
    x, y = blobs(128).dataset.tensors  # type: ignore[attr-defined]
    return Target(mlp(), DataLoader(_FirstOnly(x, y), batch_size=16), torch.nn.CrossEntropyLoss())


def bad_appended_twice() -> Target:
    x, y = blobs(128).dataset.tensors  # type: ignore[attr-defined]
    data = TensorDataset(torch.cat([x, x[:40]]), torch.cat([y, y[:40]]))
    return Target(mlp(), DataLoader(data, batch_size=16, shuffle=True), torch.nn.CrossEntropyLoss())


def bad_two_labels_for_one_input() -> Target:
    x, y = blobs(128).dataset.tensors  # type: ignore[attr-defined]
    data = TensorDataset(torch.cat([x, x[:4]]), torch.cat([y, 1 - y[:4]]))
    return Target(mlp(), DataLoader(data, batch_size=16, shuffle=True), torch.nn.CrossEntropyLoss())
