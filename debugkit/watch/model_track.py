"""Following the models that are called."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from debugkit.probes.loop_record import QuietCalls
from debugkit.watch.names import mode_dependent
from debugkit.watch.optimizer_track import OptimizerTrack
from debugkit.watch.tensors import is_plain


class ModelTrack:
    """An outermost module that is called, held weakly.

    Attributes:
        ids: the ids of its parameters.
        mode_dependent: what in it acts otherwise in train mode than in eval mode.
        optimizers: the optimizers that hold some of its parameters.
        quiet_train: calls in train mode and without gradients.
        quiet_steps: such calls by the number of optimizer steps before them.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.ref = weakref.ref(module)
        self.ids = frozenset(map(id, module.parameters()))
        self.mode_dependent = mode_dependent(module) if self.ids else ()
        self.optimizers: list[OptimizerTrack] = []
        self._known = -1
        self.quiet_train = 0
        self.quiet_steps: Counter[int] = Counter()

    def connect(self, tracks: Sequence[OptimizerTrack]) -> None:
        """Find the optimizers, if there are new ones."""
        if self._known != len(tracks):
            self._known = len(tracks)
            self.optimizers = [track for track in tracks if track.ids & self.ids]

    def quiet_calls(self) -> QuietCalls:
        """The calls in train mode and without gradients."""
        module = self.ref()
        return QuietCalls(
            model=type(module).__name__ if module is not None else "model",
            train_calls=self.quiet_train,
            stretches=len(self.quiet_steps),
            steps=sum(track.steps for track in self.optimizers),
            mode_dependent=self.mode_dependent,
        )


def has_graph(output: Any) -> bool:
    """Whether a tensor in what a module returned has a graph."""
    if isinstance(output, torch.Tensor):
        return output.requires_grad
    parts = (
        output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    )
    return any(has_graph(part) for part in parts)


def class_count(output: Any) -> int | None:
    """The number of classes, if a module's output looks like class scores ``[batch, classes]``."""
    if isinstance(output, dict):
        output = output.get("logits")
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "logits", None)
    plain = isinstance(output, torch.Tensor) and is_plain(output) and output.dim() == 2
    return int(output.shape[1]) if plain and output.shape[1] > 1 else None
