"""Following the losses that ``backward`` is called on."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from debugkit.probes.loop_record import Blame, Evaluation, LossLog
from debugkit.watch.places import shown

Line = tuple[str, int] | None

_BUFFERED = 20


@dataclass
class LossStream:
    """The losses of one line; see :class:`debugkit.probes.loop_record.LossLog`."""

    line: Line
    values: array[float] = field(default_factory=lambda: array("d"))
    steps: array[int] = field(default_factory=lambda: array("q"))
    first_bad: int | None = None
    blame: Blame | None = None
    classes: int | None = None
    waiting: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: torch.Tensor, step: int, *, now: bool) -> bool:
        """Take a loss; whether it is the first that is known not to be finite."""
        self.steps.append(step)
        if now and not self.waiting:
            return self._take([loss.item()])
        self.waiting.append(loss.detach())
        return self.flush() if now or len(self.waiting) >= _BUFFERED else False

    def flush(self) -> bool:
        """Read the losses that wait, with one transfer; whether the first bad one is the latest of them."""
        if not self.waiting:
            return False
        values = torch.stack([loss.reshape(()).to(torch.float64) for loss in self.waiting]).tolist()
        self.waiting.clear()
        return self._take(values)

    def _take(self, values: list[float]) -> bool:
        self.values.extend(values)
        if self.first_bad is None and not all(map(math.isfinite, values)):
            bad = next(index for index, value in enumerate(values) if not math.isfinite(value))
            self.first_bad = len(self.values) - len(values) + bad
            return self.first_bad == len(self.values) - 1
        return False

    def log(self) -> LossLog:
        """What was seen so far."""
        self.flush()
        return LossLog(
            location=shown(self.line),
            values=tuple(self.values),
            steps=tuple(self.steps),
            first_bad=self.first_bad,
            blame=self.blame,
            classes=self.classes,
        )


class ValidationTrack:
    """Losses computed without gradients, on batches that no loader gave: by line, and by optimizer step."""

    def __init__(self) -> None:
        self._losses: dict[tuple[Line, int], dict[int, list[torch.Tensor]]] = {}

    def add(self, line: Line, model: int, step: int, loss: torch.Tensor) -> None:
        """Take a loss of a model."""
        by_step = self._losses.setdefault((line, model), {})
        if len(by_step) < 1_000 and len(losses := by_step.setdefault(step, [])) < 1_000:
            losses.append(loss)

    def logs(self) -> tuple[Evaluation, ...]:
        """The mean loss of each line after each step."""
        return tuple(
            Evaluation(step, _mean(losses), len(losses), shown(line), model=model)
            for (line, model), by_step in self._losses.items()
            for step, losses in by_step.items()
        )


def _mean(losses: list[torch.Tensor]) -> float:
    return float(torch.stack([loss.reshape(()).float().cpu() for loss in losses]).mean())


class LossTrack:
    """Loss streams by line; reads at once on the CPU and early on, else every 20 losses."""

    def __init__(self) -> None:
        self.streams: dict[Line, LossStream] = {}
        self._unscaled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def scaled(self, outputs: object, scaled: object) -> None:
        """Remember which loss a scaled one stands for, until the next backward."""
        if isinstance(outputs, torch.Tensor) and isinstance(scaled, torch.Tensor):
            self._unscaled[id(scaled)] = (scaled, outputs)

    def original(self, tensors: Sequence[object]) -> tuple[torch.Tensor | None, bool]:
        """The loss of a backward's roots as it was before scaling, and whether it was scaled."""
        roots = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        scaled = self._unscaled.get(id(roots[0])) if len(roots) == 1 else None
        was_scaled = any(id(root) in self._unscaled for root in roots)
        self._unscaled.clear()
        loss = scaled[1] if scaled else roots[0] if len(roots) == 1 else None
        plain = loss is not None and loss.numel() == 1 and loss.is_floating_point()
        return (loss if plain else None), was_scaled

    def add(self, loss: torch.Tensor, line: Line, step: int, *, early: bool) -> LossStream | None:
        """Take a loss; its stream, if it has just become clear that it is the first that is not finite."""
        stream = self.streams.setdefault(line, LossStream(line))
        now = early or loss.device.type == "cpu"
        return stream if stream.add(loss, step, now=now) else None
