"""Batches whose parts do not fit each other, the step, or the data behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.data.loaders import inner_loader, is_map_style
from debugkit.data.rows import Rows
from debugkit.probes.batches import Batches
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.step_failure import StepFailure
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._last_batch import dropped, epoch_of, lone_sample
from ._lengths import nothing_to_read, places_without_sample, unlike_devices, unread_rows, wrong_loader_length
from ._lost_rows import lost_rows, shared_row


@check
def batch_consistency(
    target: Target,
    batches: Batches | None,
    samples: Samples | None,
    evaluation: EvalSamples | None,
    step: TrainingStep | None,
    failure: StepFailure | None,
) -> Iterator[Finding]:
    """The parts of a batch do not fit each other, the training step, or the data behind them.

    Looks at the number of samples under every key, at a last batch of one sample where BatchNorm needs two, at
    loaders without a batch, at lengths that are not what is yielded or stored, and at types. Where the step does
    not run, batches with the suspected fault repaired show whether that is the cause.

    ## Why is this bad?
    Some of these faults end training with an error at the end of the first epoch. Others are silent: labels that
    are broadcast over samples, samples that are never read because `__len__` counts the wrong thing, schedules
    planned for an epoch that is shorter than its length says.

    ## What to do
    Return one entry per sample under each key from the collate function, return the number of samples in
    `__len__`, and cast in the data set (`.float()`, `.long()`) rather than in the loop. Where one sample is left
    for the last batch, use `drop_last=True` for training.

    ## Known limits
    Packed sequences, graphs, patches and states have lengths of their own, so different lengths alone are no
    fault while the step runs.

    ## References
    - https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader
    - https://github.com/pytorch/pytorch/issues/7716
    """
    if target.train_loader is None:
        raise Unavailable("the target has no data; pass `Target(model, train_loader)`")
    findings = [*_lengths(target, samples, evaluation)]
    if samples is not None and batches is not None:
        findings += _parts(target, samples.rows, batches, failure)
        findings += _last_batch(target, samples.rows, step)
    yield from findings
    if samples is None and not findings:
        raise Unavailable("the training data could not be read")
    if samples is not None and not any(finding.level != "note" for finding in findings):
        yield _summary(samples.rows)


def _lengths(target: Target, samples: Samples | None, evaluation: EvalSamples | None) -> Iterator[Finding]:
    splits = [("train_loader", target.train_loader, samples), ("eval_loader", target.eval_loader, evaluation)]
    for name, loader, read in splits:
        if loader is None:
            continue
        if read is None and (empty := nothing_to_read(loader, name)):
            yield empty
            continue
        if read is not None and (wrong := wrong_loader_length(loader, read.rows, name)):
            yield wrong
        inner = inner_loader(loader)
        if inner is None or not is_map_style(inner):
            continue
        if read is None or not read.rows.complete:
            missing = places_without_sample(inner, "train" if name == "train_loader" else "eval")
            if missing is not None:
                yield missing
                continue
        other = target.eval_loader if name == "train_loader" else target.train_loader
        yield from unread_rows(inner, other)


def _parts(target: Target, rows: Rows, batches: Batches, failure: StepFailure | None) -> Iterator[Finding]:
    if (devices := unlike_devices(batches.first)) is not None:
        yield devices
    if failure is not None and failure.message is not None:
        yield from _of_failure(failure)
        return
    yield from lost_rows(target.train_loader, batches.first)
    yield from shared_row(batches.items, rows)


def _of_failure(failure: StepFailure) -> Iterator[Finding]:
    """What keeps the step from running."""
    if failure.rows is not None:
        groups: dict[int, list[str]] = {}
        for path, count in failure.lengths.items():
            groups.setdefault(count, []).append(f"`{path}`")
        shown = ", ".join(f"{count:,} under {' and '.join(paths)}" for count, paths in groups.items())
        yield fail(
            f"the parts of a batch differ in length ({shown}), and {failure.message}; with {failure.rows:,} rows of each "
            "it runs",
            where=next(path for path, count in failure.lengths.items() if count == failure.rows),
            hint="return one entry per sample under each key from the collate function",
            lengths=sorted({*failure.lengths.values()}),
        )
    elif (cast := failure.cast) is not None:
        paths = " and ".join(f"`{path}`" for path in cast.paths) if any(cast.paths) else "the batch"
        given, wanted = str(cast.given).removeprefix("torch."), str(cast.wanted).removeprefix("torch.")
        yield fail(
            f"{paths} {'is' if len(cast.paths) == 1 else 'are'} {given}, and {failure.message}; as {wanted} it runs",
            where=cast.paths[0] or None,
            hint=f"return {wanted} from the data set, for example with `.to(torch.{wanted})`",
            given=given,
            wanted=wanted,
        )


def _last_batch(target: Target, rows: Rows, step: TrainingStep | None) -> Iterator[Finding]:
    epoch = epoch_of(target.train_loader, rows)
    if epoch is None or not epoch.size:
        return
    if step is not None and rows.batch_sizes:
        yield from lone_sample(epoch, target.model, step, rows.batch_sizes[0])
    if (left_out := dropped(epoch)) is not None:
        yield left_out


def _summary(rows: Rows) -> Finding:
    lengths = {length for batch in rows.lengths for length in [len({*batch.values()})]}
    parts = max((len(batch) for batch in rows.lengths), default=0)
    alike = "of one length" if lengths <= {0, 1} else "of different lengths, with which the step runs"
    return note(
        f"{len(rows.batch_sizes):,} batches of {parts} part{'' if parts == 1 else 's'} {alike}",
        batches=len(rows.batch_sizes),
        samples=rows.count,
    )


def good() -> Target:
    return Target(mlp(), blobs(72), torch.nn.CrossEntropyLoss())


def _with_batch_norm() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
    )


def good_batch_norm() -> Target:
    return Target(_with_batch_norm(), blobs(66), torch.nn.CrossEntropyLoss())


def bad_last_batch_of_one() -> Target:
    return Target(_with_batch_norm(), blobs(65), torch.nn.CrossEntropyLoss())


def bad_every_batch_dropped() -> Target:
    data = blobs(64).dataset
    return Target(mlp(), DataLoader(data, batch_size=128, drop_last=True), torch.nn.CrossEntropyLoss())


def bad_float64_inputs() -> Target:
    x, y = blobs(64).dataset.tensors  # type: ignore[attr-defined]
    data = DataLoader(TensorDataset(x.double(), y), batch_size=16, shuffle=True)
    return Target(mlp(), data, torch.nn.CrossEntropyLoss())


class _Columns(Dataset[tuple[Any, ...]]):
    """A data set that counts its columns in place of its rows."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.columns = {"x": x, "y": y}

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.columns["x"][index], self.columns["y"][index]


def bad_length_of_a_dict() -> Target:
    x, y = blobs(64).dataset.tensors  # type: ignore[attr-defined]
    return Target(mlp(), DataLoader(_Columns(x, y), batch_size=2, shuffle=True), torch.nn.CrossEntropyLoss())
