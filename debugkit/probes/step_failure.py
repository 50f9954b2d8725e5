"""Why the user's step does not run, and which change of the batch would make it run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import map_tensors, split, tensors
from debugkit.errors import Broken
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Cast:
    """Tensors of a batch that would have to be of another type.

    Attributes:
        paths: their places in the batch.
        given: the type that they have.
        wanted: the type with which the step runs.
        are_labels: whether they are (part of) the labels.
    """

    paths: tuple[str, ...]
    given: torch.dtype
    wanted: torch.dtype
    are_labels: bool


@dataclass(frozen=True)
class StepFailure:
    """What became of the user's step on the first batch.

    Attributes:
        message: what it raised; ``None`` where it runs.
        cast: a change of type with which it runs.
        rows: the number of rows to which all parts of the batch can be cut so that it runs, where they have
            different lengths.
        lengths: rows of each part of the batch, by its place.
    """

    cost: ClassVar[Cost] = "forward"
    message: str | None = None
    cast: Cast | None = None
    rows: int | None = None
    lengths: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep | None) -> StepFailure:
        """Run the step again only where its traced run was refused; then try what would repair it."""
        if step is not None:
            return StepFailure()

        def error_of(batch: Any) -> str | None:
            with sandbox.probe():
                if not sandbox.training[""]:
                    target.model.train()
                try:
                    run_step(target, batch)
                except Broken as error:
                    return str(error)
            return None

        batch = batches.first
        if (message := error_of(batch)) is None:
            return StepFailure()
        lengths = {path: len(tensor) for path, tensor in tensors(batch) if tensor.ndim}
        fewest = min(lengths.values(), default=0)
        if fewest and len({*lengths.values()}) > 1:
            cut = map_tensors(batch, lambda tensor: tensor[:fewest] if tensor.ndim else tensor)
            if error_of(cut) is None:
                return StepFailure(message, rows=fewest, lengths=lengths)
        for cast in _casts(target, batch):
            if error_of(_changed(batch, cast)) is None:
                return StepFailure(message, cast=cast, lengths=lengths)
        return StepFailure(message, lengths=lengths)


def _casts(target: Target, batch: Any) -> Iterator[Cast]:
    """Changes of type that are worth a try: inputs as the model's weights, labels as numbers or as classes."""
    weights = next((p.dtype for p in target.model.parameters() if p.is_floating_point()), torch.float32)
    labels = {id(tensor) for _, tensor in tensors(split(batch)[1])}
    others: dict[tuple[torch.dtype, bool], list[str]] = {}
    for path, tensor in tensors(batch):
        others.setdefault((tensor.dtype, id(tensor) in labels), []).append(path)
    for (dtype, are_labels), paths in others.items():
        if dtype.is_complex or dtype is weights:
            continue
        if dtype.is_floating_point or not are_labels:
            yield Cast(tuple(paths), dtype, weights, are_labels)
    for (dtype, are_labels), paths in others.items():
        if are_labels and not dtype.is_complex:
            yield Cast(tuple(paths), dtype, torch.int64 if dtype.is_floating_point else weights, are_labels)
    double = [path for (dtype, _), paths in others.items() if dtype is torch.float64 for path in paths]
    if len({are_labels for dtype, are_labels in others if dtype is torch.float64}) > 1:
        yield Cast(tuple(double), torch.float64, weights, False)


def _changed(batch: Any, cast: Cast) -> Any:
    chosen = {id(tensor) for path, tensor in tensors(batch) if path in cast.paths}
    return map_tensors(batch, lambda tensor: tensor.to(cast.wanted) if id(tensor) in chosen else tensor)
