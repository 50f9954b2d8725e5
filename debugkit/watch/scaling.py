"""Following gradient scalers."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from debugkit.probes.loop_record import ScalerLog


@dataclass
class ScalerTrack:
    """One gradient scaler; see :class:`debugkit.probes.loop_record.ScalerLog`."""

    scaler: weakref.ref[Any]
    steps: int = 0
    taken: int = 0
    updates: int = 0
    scale: float = 1.0
    unscaled: set[int] = field(default_factory=set)
    refused: str | None = None

    def log(self) -> ScalerLog:
        """What was seen so far."""
        if (scaler := self.scaler()) is not None:
            self.scale = float(scaler.get_scale())
        return ScalerLog(self.steps, self.taken, self.updates, self.scale, self.refused)


class Scalers:
    """The gradient scalers in use."""

    def __init__(self) -> None:
        self._tracks: dict[int, ScalerTrack] = {}
        self._steps_before = 0

    def of(self, scaler: Any) -> ScalerTrack:
        """What is known of a scaler."""
        return self._tracks.setdefault(id(scaler), ScalerTrack(weakref.ref(scaler)))

    def unscaled(self, optimizer: Any) -> bool:
        """Whether the gradients of an optimizer were unscaled since the latest backward of a scaled loss."""
        return any(id(optimizer) in track.unscaled for track in self._tracks.values())

    def backward(self) -> None:
        """A scaled loss has passed back: all gradients are scaled again."""
        for track in self._tracks.values():
            track.unscaled.clear()

    def step_begins(self, scaler: Any, optimizer: Any, steps: int) -> None:
        """A scaler is asked to step an optimizer, after so many steps of all."""
        track = self.of(scaler)
        track.steps += 1
        track.unscaled.add(id(optimizer))
        self._steps_before = steps

    def step_ends(self, scaler: Any, steps: int) -> bool:
        """Whether the step was taken."""
        taken = steps > self._steps_before
        self.of(scaler).taken += taken
        return taken

    def logs(self) -> tuple[ScalerLog, ...]:
        """What was seen so far."""
        return tuple(track.log() for track in self._tracks.values())
