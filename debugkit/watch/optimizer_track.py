"""Following one optimizer: what it finds at each step, and what it changes."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit.probes.loop_record import GradientState, LayerLog, Mode, OptimizerLog, StepWindow
from debugkit.watch.names import Names
from debugkit.watch.places import line_at_work, shown
from debugkit.watch.tensors import checksum, glimpse, norms

EARLY_STEPS = 20
EVERY = 50
_PASSES = 64
_KEPT = 400
_LIKE = 0.1
"""Share of the largest gradient and rate above which a parameter is expected to move as it did."""


@dataclass
class _Layer:
    """One parameter as it was at the first look, and what was seen of it since; ``now`` is rate and gradient."""

    first: torch.Tensor | None
    checksum: tuple[float, float] | None
    since: int
    moved: bool = False
    with_gradient: int = 0
    gradient: float = 0.0
    windows: int = 0
    rate: float = 0.0
    now: tuple[float, float] = (0.0, 0.0)
    push: float = 0.0
    still: int = 0
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=200))


class OptimizerTrack:
    """The state of one optimizer between its steps.

    A window runs from one step to the next. The first 20 windows and every 50th are looked at closely: at the
    beginning of each backward and step, which gradients are there; in the others only counters move.

    Args:
        optimizer: the optimizer, held weakly.
        name: what reports call it.
        names: the dotted names of parameters.
        at_end: called with the track when the optimizer is gone, before its parameters are let go.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        names: Names,
        at_end: Callable[[OptimizerTrack], object],
    ) -> None:
        self.ref = weakref.ref(optimizer, lambda _: at_end(self))
        self.final: OptimizerLog | None = None
        self.name = name
        self.steps = 0
        self.modes: list[tuple[int, Mode]] = []
        self.window_modes: set[Mode] = set()
        self.mode_dependent: tuple[str, ...] = ()
        self.evaluated_at: list[int] = []
        self.rates: list[tuple[int, tuple[float, ...]]] = []
        self.windows: deque[StepWindow] = deque(maxlen=_KEPT)
        self.ids: frozenset[int] = frozenset()
        self.sampled = True
        self.passes = 0
        self.scaled = False
        self._names = names
        self._parameters: list[torch.Tensor] = []
        self._layers: dict[int, _Layer] = {}
        self._after: list[tuple[int, int] | None] = []
        self._before: list[tuple[int, int] | None] = []
        self._cleared: set[int] = set()
        self._pending: list[int] = []
        self._dropped: list[int] = []
        self._backwards = 0
        self._carried = 0
        self._weights: list[torch.Tensor | None] | None = None
        self._probe: torch.Tensor | None = None
        self._location: tuple[str, int] | None = None
        self._closure = False
        self.by_hand = False
        self.has_closure = False
        self.refresh()

    def refresh(self) -> None:
        """Read the parameter groups."""
        if (optimizer := self.ref()) is None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if len(parameters) != len(self._parameters):
            self._parameters = parameters
            self.ids = frozenset(map(id, parameters))
            self._after = []

    def backward_begins(self) -> None:
        """Look at which gradients were cleared since the last step."""
        self.passes += 1
        if not self.sampled or self.passes > _PASSES:
            return
        self._look(norms([p.grad for p in self._parameters]))
        self._before = self._marks()

    def backward_ends(self, number: int | None, scaled: bool) -> bool:
        """Whether this backward, the ``number``-th, reached a parameter; ``None`` if it need not be used."""
        if not self.sampled or self.passes > _PASSES:
            self.scaled |= scaled
            return True
        after = self._marks()
        reached = any(now is not None and now != was for now, was in zip(after, self._before, strict=False))
        if reached:
            self._backwards += 1
            self.scaled = scaled
            glance = self._glance()
            if self._probe is not None and glance is not None and not torch.equal(self._probe, glance):
                self.by_hand = True
            self._probe = glance
            if number is not None and _state(norms([p.grad for p in self._parameters])) == "live":
                self._pending.append(number)
        return reached

    def pass_begins(self) -> None:
        """The training data begins anew: gradients that are there are carried over."""
        self._carried = self._backwards

    def skips(self, used: set[int]) -> None:
        """A step was skipped for gradients that are not finite: they count as used."""
        used.update(self._pending)
        self._pending = []

    def ends(self, log: OptimizerLog) -> None:
        """Keep what was seen, and let the parameters go."""
        self.final = log
        self._parameters, self._layers, self._before, self._after = [], {}, [], []
        self._weights = self._probe = None

    def step_begins(self, closure: bool, used: set[int]) -> StepWindow | None:
        """Close the window, unless a closure will run the backward inside of the step."""
        self.refresh()
        self._closure = closure
        self.has_closure |= closure
        self._note_rates()
        if not self.sampled:
            return None
        self._location = line_at_work()
        self._weights = [glimpse(p) for p in self._parameters]
        for p in self._parameters:
            if id(p) not in self._layers:
                self._layers[id(p)] = _Layer(glimpse(p), checksum(p), self.steps)
        self._note_layer_rates()
        return None if closure else self._close(used)

    def step_ends(self, used: set[int], every: int = EVERY) -> StepWindow | None:
        """Open the next window."""
        window = self._close(used) if self._closure and self.sampled else None
        if self._weights is not None:
            self._compare(self._weights)
        self.steps += 1
        used.update(self._pending)
        mode: Mode | None = "train" if "train" in self.window_modes else "eval" if self.window_modes else None
        if mode is not None and (not self.modes or self.modes[-1][1] != mode):
            self.modes.append((self.steps, mode))
        self.window_modes = set()
        self._weights = None
        self._pending, self._dropped = [], []
        self._backwards = self._carried = self.passes = 0
        self._cleared = set()
        self._probe = None
        self.scaled = False
        self.sampled = self.steps < EARLY_STEPS or (self.steps + 1) % every == 0
        self._after = self._marks() if self.sampled else []
        return window

    def parameters(self) -> list[tuple[str, torch.Tensor]]:
        """The parameters by name."""
        return [(self._names.of(p), p) for p in self._parameters]

    def movements(self) -> list[LayerLog]:
        """How each parameter moves."""
        if self.final is not None:
            return list(self.final.layers)
        return [self._layer_log(p, thorough=False, **far) for p, far in self._distances()]

    def log(self, used: set[int], *, alone: bool, thorough: bool) -> OptimizerLog:
        """What was seen so far; ``thorough`` reads every parameter that seems not to move, also without gradients."""
        if self.final is not None:
            return self.final
        return OptimizerLog(
            name=self.name,
            steps=self.steps,
            windows=tuple(self.windows),
            open_discarded=len(set(self._dropped) - used),
            open_backwards=self._backwards,
            rates=tuple(self.rates),
            layers=tuple(
                self._layer_log(p, thorough=thorough, **far) for p, far in self._distances(thorough)
            ),
            modes=tuple(self.modes),
            mode_dependent=self.mode_dependent,
            evaluated_at=tuple(self.evaluated_at),
            has_closure=self.has_closure,
            by_hand=self.by_hand,
            alone=alone,
        )

    def _close(self, used: set[int]) -> StepWindow:
        found = norms([p.grad for p in self._parameters])
        pending, backwards, carried = bool(self._pending), self._backwards, self._carried
        marks = self._marks()
        same = bool(self._after) and marks == self._after
        self._look(found)
        state = _state(found)
        live = [index for index, value in enumerate(found) if value is not None and value != 0]
        stale = [
            index
            for index in live
            if self._after and index not in self._cleared and self._is_old(marks, index) and backwards
        ]
        known = [value for value in found if value is not None and math.isfinite(value)]
        for index, p in enumerate(self._parameters):
            if (layer := self._layers.get(id(p))) is not None:
                layer.windows += 1
                layer.with_gradient += index in live
                layer.gradient = max(layer.gradient, found[index] or 0.0)
                layer.now = layer.now[0], found[index] or 0.0
        window = StepWindow(
            step=self.steps + 1,
            location=shown(self._location),
            backwards=backwards,
            carried=carried,
            passes=self.passes,
            gradients=state,
            stale=tuple(self._names.of(self._parameters[index]) for index in stale),
            parameters=len(live),
            reused=self.steps > 0 and state == "live" and self.passes == 0 and same,
            discarded=len(set(self._dropped) - used),
            wiped=pending and state != "live",
            still_scaled=self.scaled and state == "live",
            norm=math.sqrt(sum(value * value for value in known)) if known else None,
        )
        self.windows.append(window)
        return window

    def _is_old(self, marks: list[tuple[int, int] | None], index: int) -> bool:
        """Whether the gradient is the very tensor that the step before used, with something added."""
        mark, after = marks[index], self._after[index] if index < len(self._after) else None
        return mark is not None and after is not None and mark[0] == after[0] and mark != after

    def _look(self, found: list[float | None]) -> None:
        self._cleared.update(index for index, value in enumerate(found) if value is None or value == 0)
        if _state(found) == "live":
            return
        if self._pending:
            glance = self._glance()
            if self._probe is None or glance is None or torch.equal(self._probe, glance):
                self._dropped += self._pending
            self._pending = []
        self._backwards = self._carried = 0

    def _marks(self) -> list[tuple[int, int] | None]:
        """Which tensor each gradient is, and how often it was written to."""
        return [None if (g := p.grad) is None else (id(g), g._version) for p in self._parameters]

    def _glance(self) -> torch.Tensor | None:
        """A few weights, to see whether they were changed by hand."""
        return glimpse(self._parameters[0]) if self._parameters else None

    def _note_rates(self) -> None:
        if (optimizer := self.ref()) is None:
            return
        rates = [group.get("lr") for group in optimizer.param_groups]
        far = any(isinstance(rate, torch.Tensor) and rate.device.type != "cpu" for rate in rates)
        if far and not self.sampled:
            return
        now = tuple(float(rate) for rate in rates if isinstance(rate, int | float | torch.Tensor))
        if (not self.rates or self.rates[-1][1] != now) and len(self.rates) < 20_000:
            self.rates.append((self.steps + 1, now))

    def _note_layer_rates(self) -> None:
        optimizer = self.ref()
        for group in optimizer.param_groups if optimizer is not None else ():
            rate = float(group.get("lr", math.nan))
            for p in group["params"]:
                if (layer := self._layers.get(id(p))) is not None:
                    layer.rate = max(layer.rate, rate)
                    layer.now = rate, 0.0

    def _compare(self, before: list[torch.Tensor | None]) -> None:
        """How far the step moved each parameter, from the looked-at elements."""
        kept = [
            (p, was, now)
            for p, was in zip(self._parameters, before, strict=False)
            if was is not None and (now := glimpse(p)) is not None and now.shape == was.shape
        ]
        if not kept:
            return
        changes = norms([now - was for _, was, now in kept])
        sizes = norms([was for _, was, _ in kept])
        for (p, was, _), change, size in zip(kept, changes, sizes, strict=True):
            layer = self._layers.get(id(p))
            if layer is None or change is None or size is None:
                continue
            rate, gradient = layer.now
            if change > 0:
                layer.moved, layer.still = True, 0
            elif gradient > _LIKE * layer.gradient and rate > _LIKE * layer.rate:
                layer.still += 1
            rounding = (
                size / math.sqrt(was.numel()) * torch.finfo(p.dtype).eps if p.is_floating_point() else 0.0
            )
            if rounding > 0:
                layer.push = max(layer.push, rate * gradient / math.sqrt(p.numel()) / rounding)
            if size > 0 and math.isfinite(change):
                layer.ratios.append(change / size)

    def _distances(self, thorough: bool = True) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """Each parameter with how far its looked-at elements have moved, scaled up to all of them."""
        looks = {}
        for p in self._parameters if thorough else ():
            first = layer.first if (layer := self._layers.get(id(p))) is not None else None
            if first is not None and (now := glimpse(p)) is not None and now.shape == first.shape:
                looks[id(p)] = first, now
        changes = norms([now - first for first, now in looks.values()])
        starts = norms([first for first, _ in looks.values()])
        known = {key: (change, start) for key, change, start in zip(looks, changes, starts, strict=True)}
        for p in self._parameters:
            change, start = known.get(id(p), (None, None))
            if change is None or start is None or not math.isfinite(change + start):
                yield p, {}
            else:
                scale = math.sqrt(p.numel() / looks[id(p)][0].numel())
                yield p, {"distance": change * scale, "start": start * scale}

    def _layer_log(self, p: torch.Tensor, *, thorough: bool, **far: float) -> LayerLog:
        layer = self._layers.get(id(p)) or _Layer(None, None, self.steps)
        doubtful = layer.with_gradient > 0.5 * layer.windows
        if (thorough or doubtful) and not layer.moved and layer.checksum is not None:
            now = glimpse(p)
            changed = layer.first is not None and now is not None and not torch.equal(now, layer.first)
            layer.moved = changed or checksum(p) != layer.checksum
        return LayerLog(
            name=self._names.of(p),
            size=p.numel(),
            moved=layer.moved or layer.checksum is None,
            steps=self.steps - layer.since,
            with_gradient=layer.with_gradient,
            gradient=layer.gradient,
            windows=layer.windows,
            ratios=tuple(layer.ratios),
            requires_grad=p.requires_grad,
            in_model=self._names.knows(p),
            rate=layer.rate,
            push=layer.push,
            still=layer.still,
            **far,
        )


def _state(found: list[Any]) -> GradientState:
    there = [value for value in found if value is not None]
    return "live" if any(value != 0 for value in there) else "zero" if there else "none"
