"""The last batch of an epoch, and what BatchNorm does to a batch of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler

from debugkit import Finding, fail, note
from debugkit.data.loaders import inner_loader, is_map_style
from debugkit.data.rows import Rows
from debugkit.probes.training_step import TrainingStep

from ._lengths import length


@dataclass(frozen=True)
class Epoch:
    """How the samples of an epoch fall into batches.

    Attributes:
        samples: how many there are.
        size: samples in a full batch.
        drops: whether the samples that do not fill a batch are left out.
    """

    samples: int
    size: int
    drops: bool

    @property
    def rest(self) -> int:
        """Samples that do not fill a batch."""
        return self.samples % self.size


def epoch_of(loader: Any, rows: Rows | None) -> Epoch | None:
    """The batches of an epoch by the loader's sampler, or as they were read."""
    inner = inner_loader(loader)
    sampler = None if inner is None or not is_map_style(inner) else inner.batch_sampler
    if type(sampler) is BatchSampler and (count := length(sampler.sampler)) is not None:
        return Epoch(count, sampler.batch_size, sampler.drop_last)
    if rows is None or not rows.complete or len(rows.batch_sizes) < 2:
        return None
    *full, last = rows.batch_sizes
    if len({*full}) > 1 or last > full[0]:
        return None
    return Epoch(rows.count, full[0], False)


def lone_sample(epoch: Epoch, model: torch.nn.Module, step: TrainingStep, first: int) -> Iterator[Finding]:
    """Findings for a last batch of one sample.

    Args:
        epoch: the batches of an epoch.
        model: the model.
        step: its traced step.
        first: samples in the first batch, on which the step was traced.
    """
    if epoch.drops or epoch.rest != 1 or epoch.size < 2 or epoch.samples < epoch.size or not first:
        return
    said = f"the last batch of an epoch holds one sample ({epoch.samples:,} = {epoch.samples // epoch.size:,} x {epoch.size:,} + 1)"
    for name, module in model.named_modules():
        shape = step.module_shapes.get(name)
        if (
            not isinstance(module, _BatchNorm)
            or not step.training_after.get(name)
            or not shape
            or len(shape) < 2
        ):
            continue
        if math.prod(shape) == first * shape[1]:
            yield fail(
                f"{said}, and `{name}` has a single value per channel there: torch raises `Expected more than 1 value "
                "per channel when training`, at the end of the first epoch",
                where=name,
                hint="use `DataLoader(drop_last=True)`, or another `batch_size`",
                samples=epoch.samples,
                batch_size=epoch.size,
            )
            return
    yield note(said, samples=epoch.samples, batch_size=epoch.size)


def dropped(epoch: Epoch) -> Finding | None:
    """What `drop_last` leaves out of each epoch."""
    if not epoch.drops or not epoch.rest or epoch.samples < epoch.size:
        return None
    return note(
        f"`drop_last` leaves {epoch.rest:,} of {epoch.samples:,} samples out of each epoch",
        dropped=epoch.rest,
        samples=epoch.samples,
    )
