"""Evaluation data that training sees too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Subset, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.train_contents import TrainContents
from debugkit.testing import blobs, mlp

from ._plain import are_samples
from ._provenance import overlap
from ._shared import Shared, find_shared, shared_paths

_FEWEST = 8
_SHOWN = 3
_SPLIT = "hold out samples that training never draws, for example with `random_split`"
_DEDUPLICATE = (
    "drop repeats before the data is split, and keep everything that was made from one sample on one side"
)


@check
def train_eval_leakage(
    target: Target,
    train: TrainContents | None,
    evaluation: EvalSamples | None,
    *,
    max_share: Annotated[
        float,
        Field(ge=0, lt=1, description="share of the evaluation samples that may be in the training data"),
    ] = 0.01,
    max_windows: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the evaluation windows that may overlap a training window by most",
        ),
    ] = 0.5,
) -> Iterator[Finding]:
    """The same sample is in the training and in the evaluation data.

    First by what the loaders draw (`Subset`, `ConcatDataset` and samplers are followed down to the data set that
    they share), then by what the samples hold: equal inputs, texts with a few words changed, numbers with a little
    noise, windows that overlap. Samples that hold so little that a twin is to be expected do not count.

    ## Why is this bad?
    A sample that was trained on says nothing about new data. The evaluation looks better than the model is, and
    overfitting goes unnoticed: the model that is picked is the one that remembers most.

    ## What to do
    Split first, then augment, oversample and cut windows, each split on its own. Drop repeated samples before the
    split. Split by group (patient, author, document) or by time where samples belong together.

    ## Known limits
    Samples of one group that differ are not recognised, nor are images that were scaled or compressed again. Of
    large training sets a part is compared, which the note tells.

    ## References
    - https://doi.org/10.1016/j.patter.2023.100804
    - https://arxiv.org/abs/1902.00423
    """
    if target.train_loader is None:
        raise Unavailable("the target has no data; pass `Target(model, train_loader)`")
    if target.eval_loader is None:
        raise Unavailable("the target has no evaluation data; pass `Target(eval_loader=...)`")
    findings = [*_by_what_is_drawn(target, train, evaluation, max_share)]
    yield from findings
    if any(finding.level != "note" for finding in findings):
        return
    if train is None or evaluation is None:
        if not findings:
            raise Unavailable("one of the splits could not be read")
        return
    yield from _by_content(train, evaluation, max_share, max_windows, explained=bool(findings))


def _by_what_is_drawn(
    target: Target, train: TrainContents | None, evaluation: EvalSamples | None, max_share: float
) -> Iterator[Finding]:
    if target.eval_loader is target.train_loader:
        if _is_fresh(target, train, evaluation):
            yield note("`eval_loader` is `train_loader`, which gives new samples each time it is read")
        else:
            yield fail(
                "`eval_loader` is the same object as `train_loader`: the evaluation measures how well the training "
                "data is remembered",
                hint=_SPLIT,
                share=1.0,
            )
        return
    found = overlap(target.train_loader, target.eval_loader)
    if found is None:
        return
    share = found.shared / max(found.total, 1)
    facts: dict[str, Any] = {"shared": found.shared, "share": share}
    what = "the same data set" if found.by_object else "data sets with equal contents"
    if found.shared and found.shared == found.total:
        yield fail(
            f"all {found.total:,} evaluation samples are drawn for training too: both loaders read the same places of "
            f"{what}",
            hint=_SPLIT,
            **facts,
        )
    elif found.shared:
        yield (warn if share > max_share else note)(
            f"{found.shared:,} of {found.total:,} evaluation samples ({percent(share)}) are drawn for training too: "
            f"both loaders read these places of {what}",
            hint="draw the two splits from one shuffled list of places, without overlap",
            **facts,
        )
    else:
        yield note(f"both loaders read {what}, and no place of it twice", **facts)


def _is_fresh(target: Target, train: TrainContents | None, evaluation: EvalSamples | None) -> bool:
    """Whether a loader that is read twice gives samples that were not there the first time, and keeps no store."""
    if train is None or evaluation is None or not evaluation.rows.digests or evaluation.rows.count < _FEWEST:
        return False
    if {*train.rows.digests} & {*evaluation.rows.digests}:
        return False
    found = overlap(target.train_loader, target.eval_loader)
    return found is None or not found.shared


def _by_content(
    train: TrainContents, evaluation: EvalSamples, max_share: float, max_windows: float, *, explained: bool
) -> Iterator[Finding]:
    paths = shared_paths(train.rows, evaluation.rows)
    if paths is None or not (are_samples(train.rows) and are_samples(evaluation.rows)):
        if not explained:
            raise Unavailable(
                "the splits hold different inputs, or none that can be compared sample by sample"
            )
        return
    shared = find_shared(train.rows, evaluation.rows, paths, same_labels=evaluation.labels.kind != "tokens")
    compared = f"{shared.count:,} evaluation samples"
    if shared.is_toy:
        yield note("both splits are the same handful of samples, many times each, as in a toy set")
        return
    share = len(shared.same) / max(shared.count, 1)
    facts: dict[str, Any] = {"shared": len(shared.same), "share": share}
    example = _example(train, evaluation, shared.same)
    beyond_chance = (
        len(shared.same) > shared.count / 2 and len(shared.same) + shared.by_chance == shared.count
    )
    if shared.count >= _FEWEST and beyond_chance and evaluation.rows.complete:
        yield fail(
            f"all {compared} are in the training data, {example}: the evaluation measures how well they are remembered",
            where=evaluation.rows.name(shared.same[0][0]),
            hint=_SPLIT,
            **facts,
        )
        return
    near = {pair[0] for pair in (*shared.edited, *shared.noisy)} - {pair[0] for pair in shared.same}
    both = len(shared.same) + len(near)
    if both:
        kinds = _kinds(len(shared.same), len(near), bool(shared.edited))
        pairs = [*shared.same, *shared.edited, *shared.noisy]
        yield (warn if both > max_share * shared.count else note)(
            f"{both:,} of {compared} ({percent(both / shared.count)}) are in the training data{kinds}, "
            f"{_example(train, evaluation, pairs)}: they make the model look better than it is",
            where=evaluation.rows.name(pairs[0][0]),
            hint=_DEDUPLICATE,
            near=len(near),
            **facts,
        )
    yield from _windows(train, evaluation, shared, max_windows)
    if shared.by_chance:
        yield note(
            f"{shared.by_chance:,} of {compared} are in the training data too, and hold so little that this is to be "
            "expected",
            by_chance=shared.by_chance,
        )
    if not both and not shared.by_chance:
        yield note(f"none of {compared} is among {train.scanned}", **facts)


def _windows(
    train: TrainContents, evaluation: EvalSamples, shared: Shared, max_windows: float
) -> Iterator[Finding]:
    if not shared.windows:
        return
    share = len(shared.windows) / shared.count
    yield (warn if share > max_windows else note)(
        f"{len(shared.windows):,} of {shared.count:,} evaluation windows ({percent(share)}) overlap a training window "
        f"by more than half, {_example(train, evaluation, shared.windows, '~')}: most of what is evaluated was trained "
        "on",
        where=evaluation.rows.name(shared.windows[0][0]),
        hint="split the series by time first, and cut windows from each part",
        windows=len(shared.windows),
        share=share,
    )


def _kinds(same: int, near: int, edited: bool) -> str:
    if not near:
        return ""
    how = "with a few words changed" if edited else "with a little noise"
    return f" ({near:,} of them {how})" if same else f" {how}"


def _example(
    train: TrainContents, evaluation: EvalSamples, pairs: Sequence[tuple[int, int]], sign: str = "="
) -> str:
    shown = [f"{evaluation.rows.name(one)} {sign} {train.rows.name(other)}" for one, other in pairs[:_SHOWN]]
    return f"`{'`, `'.join(shown)}`"


def _halves(first: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders over the first 96 samples, and over 32 from a place on."""
    data = TensorDataset(*blobs(128).dataset.tensors)  # type: ignore[attr-defined]
    train = DataLoader(Subset(data, range(96)), batch_size=16, shuffle=True)
    return train, DataLoader(Subset(data, range(first, first + 32)), batch_size=16)


def good() -> Target:
    train, evaluation = _halves(96)
    return Target(mlp(), train, torch.nn.CrossEntropyLoss(), eval_loader=evaluation)


def bad_same_loader() -> Target:
    train, _ = _halves(96)
    return Target(mlp(), train, torch.nn.CrossEntropyLoss(), eval_loader=train)


def bad_overlapping_subsets() -> Target:
    train, evaluation = _halves(80)
    return Target(mlp(), train, torch.nn.CrossEntropyLoss(), eval_loader=evaluation)


def bad_copied_before_the_split() -> Target:
    x, y = blobs(128).dataset.tensors  # type: ignore[attr-defined]
    train = DataLoader(TensorDataset(x[:96], y[:96]), batch_size=16, shuffle=True)
    x, y = torch.cat([x[96:], x[:8]]), torch.cat([y[96:], y[:8]])
    return Target(
        mlp(),
        train,
        torch.nn.CrossEntropyLoss(),
        eval_loader=DataLoader(TensorDataset(x, y), batch_size=16),
    )
