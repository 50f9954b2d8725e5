"""Following the lines that clip gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit.probes.loop_record import ClipLog
from debugkit.watch.loss_track import Line
from debugkit.watch.optimizer_track import OptimizerTrack
from debugkit.watch.places import line_at_work, shown
from debugkit.watch.scaling import Scalers

_LATEST = 1_000


@dataclass
class ClipTrack:
    """One line that clips; see :class:`debugkit.probes.loop_record.ClipLog`."""

    line: Line
    calls: int = 0
    limit: float = 0.0
    after_step: int = 0
    before_backward: int = 0
    scaled: int = 0
    waiting: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def add(self, limit: float, norm: torch.Tensor) -> None:
        """Take a call; norms are read twenty at a time."""
        self.calls += 1
        self.limit = limit
        self.waiting.append((limit, norm.detach()))
        if len(self.waiting) >= 20:
            self.flush()

    def flush(self) -> None:
        """Read the norms that wait."""
        for limit, norm in self.waiting:
            value = float(norm)
            if value > 0:
                self.ratios.append(limit / value)
        self.waiting.clear()

    def log(self) -> ClipLog:
        """What was seen so far."""
        self.flush()
        return ClipLog(
            location=shown(self.line),
            calls=self.calls,
            limit=self.limit,
            ratios=tuple(self.ratios),
            after_step=self.after_step,
            before_backward=self.before_backward,
            scaled=self.scaled,
        )


class Clips:
    """The lines that clip."""

    def __init__(self) -> None:
        self._tracks: dict[Line, ClipTrack] = {}

    def add(
        self,
        parameters: Any,
        limit: float,
        norm: torch.Tensor,
        optimizers: Iterable[OptimizerTrack],
        scalers: Scalers,
    ) -> None:
        """Gradients are clipped by their norm."""
        line = line_at_work()
        clip = self._tracks.setdefault(line, ClipTrack(line))
        clip.add(limit, norm)
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
        if not isinstance(parameters, list | tuple):
            return
        ends = {id(parameter) for parameter in (*parameters[:1], *parameters[-1:])}
        owners = [track for track in optimizers if not track.ids.isdisjoint(ends)]
        if not any(parameter.grad is not None for parameter in parameters):
            clip.before_backward += 1
        elif owners and all(track.steps and not track.passes for track in owners):
            clip.after_step += 1
        clip.scaled += any(track.scaled and not scalers.unscaled(track.ref()) for track in owners)

    def logs(self) -> tuple[ClipLog, ...]:
        """What was seen so far."""
        return tuple(track.log() for track in self._tracks.values())
