"""Data that repeats where it should be random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    get_worker_info,
)

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.loaders import deciding_sampler, inner_loader
from debugkit.probes.epochs import Epochs
from debugkit.probes.fetches import Fetches
from debugkit.probes.label_use import LabelUse
from debugkit.probes.samples import Samples
from debugkit.probes.worker_copies import WorkerCopies
from debugkit.testing import blobs, mlp

from ._fixed_order import intended, is_frozen_permutation

_FEWEST = 16
_GENERATORS = {"python": "Python's", "numpy": "NumPy's", "torch": "torch's"}
_SHARED_HINT = (
    "draw from torch's, NumPy's or Python's global generator, which torch seeds differently in each worker and epoch, "
    "or make the generator in `worker_init_fn` from `torch.initial_seed()`"
)


@check
def loader_randomness(
    samples: Samples,
    target: Target,
    epochs: Epochs | None,
    fetches: Fetches | None,
    copies: WorkerCopies | None,
    use: LabelUse | None,
    *,
    min_batches: Annotated[
        int, Field(ge=2, description="batches per epoch from which a fixed order is reported")
    ] = 2,
) -> Iterator[Finding]:
    """Data repeats where it should be random.

    Two epochs are read, or their samples drawn, one right after the other, so that every generator goes on
    as in training. A few samples are fetched again and again by two of the loader's own workers, in two epochs: what
    changes from fetch to fetch is random, and must not be the same in the other worker or epoch. Of a
    stream read by several workers it is seen whether each of them gives every sample.

    ## Why is this bad?
    With a fixed order every epoch has the same batches, so their chance composition is learned as well. A generator
    that lives in the data set is copied to each worker: all of them augment alike, and in the next epoch the
    copies begin anew, so that augmentation multiplies the data far less than it seems. An `IterableDataset` that
    ignores its worker's number gives every sample once per worker; an epoch is longer than it should be, and
    neighbouring batches are the same.

    ## What to do
    `DataLoader(..., shuffle=True)`; with a `DistributedSampler`, call `sampler.set_epoch(epoch)` in each epoch.
    Draw random numbers from the global generators, which torch seeds for each worker and epoch, and seed nothing
    inside `__getitem__`. In an `IterableDataset`, split the samples by `get_worker_info()`.

    ## Known limits
    Windows of a series, pieces of running text, curricula sorted by length, lists of batches and streams may well
    come in a fixed order: that is a note. A stream is compared only where an epoch is short enough to be read. Whether the
    training loop calls `set_epoch` can't be seen from the loader.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/faq.html#my-data-loader-workers-return-identical-random-numbers
    - https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.IterableDataset
    - https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler
    """
    if epochs is None and fetches is None and copies is None:
        raise Unavailable(
            "`train_loader` can be read only once, so there is no second epoch to look at; pass a loader that begins "
            "anew when it is iterated again"
        )
    if epochs is not None:
        yield _order(epochs, samples, target, use, min_batches)
    if copies is not None:
        yield _worker_copies(copies)
    if fetches is not None:
        yield from _augmentation(fetches, epochs)
        yield from _resets(fetches)


def _worker_copies(copies: WorkerCopies) -> Finding:
    facts: dict[str, Any] = {
        "workers": copies.workers,
        "distinct": copies.distinct,
        "samples": copies.samples,
    }
    if copies.copies == 1:
        return note(
            f"{copies.workers} workers share the stream out: {copies.distinct:,} of {copies.samples:,} samples are "
            "different",
            **facts,
        )
    return fail(
        f"every sample comes {copies.copies} times, once from each of the {copies.workers} workers "
        f"({copies.distinct:,} different samples among {copies.samples:,})",
        hint="give each worker its share in `__iter__`: "
        "`itertools.islice(rows, info.id, None, info.num_workers)` with `info = get_worker_info()`",
        **facts,
    )


def _augmentation(fetches: Fetches, epochs: Epochs | None) -> Iterator[Finding]:
    """What is random within a worker, held against another worker and another epoch."""
    for path in sorted(fetches.across_workers):
        both = ", and the same again in the next epoch" if path in fetches.across_epochs else ""
        yield fail(
            f"the random content of `{_place(path)}` is the same in every worker{both}: it changes from fetch to fetch "
            f"within each of the {fetches.workers} workers, in the same way",
            where=_place(path),
            hint=_SHARED_HINT,
            workers=fetches.workers,
        )
    fixed = epochs is not None and epochs.order == "same"
    for path in sorted(fetches.across_epochs - fetches.across_workers):
        make = fail if fixed else warn
        yield make(
            f"the random content of `{_place(path)}` repeats in every epoch: each worker begins anew with the same "
            "random numbers",
            where=_place(path),
            hint=_SHARED_HINT,
            workers=fetches.workers,
        )
    if not fetches.across_workers and not fetches.across_epochs:
        if not fetches.random:
            yield note("samples fetched twice are the same: nothing about them is random")
        else:
            random = ", ".join(f"`{_place(path)}`" for path in sorted(fetches.random))
            workers = f", across {fetches.workers} workers and two epochs" if fetches.workers else ""
            yield note(f"{random} is random from fetch to fetch{workers}")


def _resets(fetches: Fetches) -> Iterator[Finding]:
    """Global generators that fetching a sample seeds."""
    for name, reset in sorted(fetches.resets.items()):
        whose = _GENERATORS[name]
        if not reset.same:
            yield note(f"fetching a sample seeds {whose} global generator by the sample")
        elif reset.drawn:
            yield fail(
                f"fetching a sample seeds {whose} global generator, always with the same seed: every sample of every "
                "epoch gets the same random numbers",
                hint="seed once at the start of the program, not where samples are fetched or collated",
                generator=name,
            )
        elif not fetches.workers:
            yield warn(
                f"fetching a batch seeds {whose} global generator in the training process, always with the same seed: "
                "what draws from it afterwards, such as dropout, gets the same random numbers in every step",
                hint="seed once at the start of the program, not where samples are fetched or collated",
                generator=name,
            )


def _order(
    epochs: Epochs, samples: Samples, target: Target, use: LabelUse | None, min_batches: int
) -> Finding:
    facts: dict[str, Any] = {"batches": epochs.batches, "samples": epochs.samples}
    if epochs.order == "changes":
        return note(f"the order changes from epoch to epoch ({epochs.said})", **facts)
    if epochs.order == "told":
        return note(
            f"the order is the same in every epoch unless the loop calls `set_epoch` of the `{epochs.said}`",
            **facts,
        )
    if epochs.order in ("ends", "raises"):
        return _no_second_epoch(epochs, target)
    if epochs.order == "unknown":
        return note(f"whether the order changes is not known: {epochs.said}")
    if epochs.source == "list":
        return note(f"{epochs.said}, in the same order in every epoch", **facts)
    if epochs.order == "lost":
        return warn(
            f"the order never changes, although the data set changes it ({epochs.samples:,} samples): workers are made "
            "anew in every epoch, and what the data set counts or draws in one is lost with it",
            hint="`DataLoader(..., persistent_workers=True)`, or set the epoch in the data set before it is iterated",
            **facts,
        )
    if (epochs.batches or min_batches) < min_batches or epochs.samples < _FEWEST:
        return note(
            f"the order never changes, which hardly matters with {epochs.samples:,} samples in "
            f"{epochs.batches} {'batch' if epochs.batches == 1 else 'batches'}",
            **facts,
        )
    if reason := intended(epochs, samples, target, use):
        return note(f"the order never changes: {reason}", **facts)
    if epochs.source != "map" and is_frozen_permutation(samples, target):
        return warn(
            f"the order never changes: `__iter__` draws the same permutation each time, so every epoch has the same "
            f"batches ({epochs.samples:,} samples)",
            hint="draw from a generator that is made once, not where `__iter__` begins",
            **facts,
        )
    if epochs.source != "map":
        return note(
            f"the order never changes: {epochs.samples:,} samples come in the order in which the loader makes them",
            hint="draw a new permutation where `__iter__` begins, unless the order is meant",
            **facts,
        )
    what, hint = _lever(target)
    return warn(
        f"the order never changes: {what}, so every epoch has the same batches ({epochs.samples:,} samples)",
        hint=hint,
        **facts,
    )


def _no_second_epoch(epochs: Epochs, target: Target) -> Finding:
    steps = (target.training_steps or 0) * target.accumulation_steps
    if target.training_steps is not None and epochs.batches is not None and steps <= epochs.batches:
        return note(f"the data lasts for one epoch, which is all that is planned ({epochs.said})")
    planned = epochs.batches is not None and steps > epochs.batches
    make = fail if planned or epochs.order == "raises" else warn
    happens = "raises" if epochs.order == "raises" else "is empty"
    return make(
        f"the second epoch {happens}: {epochs.said}",
        hint="begin anew in `__iter__`: open the file, or make the iterator, there",
        batches=epochs.batches,
    )


def _lever(target: Target) -> tuple[str, str]:
    loader = inner_loader(target.train_loader)
    sampler = None if loader is None else deciding_sampler(loader)
    if isinstance(sampler, SequentialSampler):
        return "samples come in the order in which they are stored", "`DataLoader(..., shuffle=True)`"
    return (
        f"`{type(sampler).__name__}` draws the same permutation each time",
        "draw a new permutation in its `__iter__`, from a generator that is made once and not seeded again",
    )


def _place(path: str) -> str:
    return f"batch{path}" if not path or path.startswith("[") else f"batch.{path}"


class _Noisy(Dataset[Any]):
    """Rows with noise from a generator of their own, or from torch's."""

    def __init__(self, own: bool) -> None:
        self._rows = blobs(128).dataset
        self._generator = np.random.default_rng(0) if own else None

    def __len__(self) -> int:
        return 128

    def __getitem__(self, place: int) -> Any:
        x, y = self._rows[place]
        if self._generator is None:
            return x + 0.1 * torch.randn(8), y
        return x + 0.1 * torch.from_numpy(self._generator.standard_normal(8)).float(), y


class _Stream(IterableDataset[Any]):
    """Rows in a new order, all of them or each of two workers' share."""

    def __init__(self, shared: bool) -> None:
        self._rows = blobs(128).dataset
        self._shared = shared

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        mine = range(128) if info is None or not self._shared else range(64 * info.id, 64 * (info.id + 1))
        order = torch.randperm(len(mine)).tolist()
        yield from (self._rows[mine[place]] for place in order)


class _SameShuffle(torch.utils.data.Sampler[int]):
    """A permutation from a generator that is seeded at the beginning of every epoch."""

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(128, generator=torch.Generator().manual_seed(0)).tolist()

    def __len__(self) -> int:
        return 128


def _classifier(loader: DataLoader[Any]) -> Target:
    return Target(mlp(), loader, torch.nn.CrossEntropyLoss())


def good() -> Target:
    return _classifier(blobs(128))


def good_workers_augment_on_their_own() -> Target:
    return _classifier(DataLoader(_Noisy(own=False), batch_size=16, shuffle=True, num_workers=2))


def good_workers_share_a_stream() -> Target:
    return _classifier(DataLoader(_Stream(shared=True), batch_size=16, num_workers=2))


def bad_not_shuffled() -> Target:
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    x, y = blobs(128).dataset[order]
    return _classifier(DataLoader(TensorDataset(x, y), batch_size=16))


def bad_same_permutation_in_every_epoch() -> Target:
    return _classifier(DataLoader(blobs(128).dataset, batch_size=16, sampler=_SameShuffle()))


def bad_workers_augment_alike() -> Target:
    return _classifier(DataLoader(_Noisy(own=True), batch_size=16, shuffle=True, num_workers=2))


def bad_every_worker_gives_all() -> Target:
    return _classifier(DataLoader(_Stream(shared=False), batch_size=16, num_workers=2))
