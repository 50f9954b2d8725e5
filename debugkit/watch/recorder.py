"""The recorder: puts together what the wrappers in :mod:`debugkit.watch.patches` see."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch

from debugkit.data.batch import size
from debugkit.errors import one_line
from debugkit.probes.loop_record import Blame, LoopRecord, Mode, OptimizerLog, QuietCalls
from debugkit.sandbox import is_measuring
from debugkit.trials.schedule import unwrap
from debugkit.watch.clipping import Clips
from debugkit.watch.clock import Clock
from debugkit.watch.data_track import DataTrack
from debugkit.watch.first_iteration import FirstIteration
from debugkit.watch.guard import seen
from debugkit.watch.latest_calls import LatestCalls
from debugkit.watch.loss_track import Line, LossTrack, ValidationTrack
from debugkit.watch.model_track import ModelTrack, class_count, has_graph
from debugkit.watch.names import Names
from debugkit.watch.optimizer_track import EARLY_STEPS, EVERY, OptimizerTrack
from debugkit.watch.places import line_at_work
from debugkit.watch.scaling import Scalers
from debugkit.watch.schedule_track import Schedulers
from debugkit.watch.side_tracks import GraphTrack, StateTrack
from debugkit.watch.tensors import first_leaf, scalar

_REMEMBERED = 2_000


class Recorder:
    """What was seen of a loop so far.

    Attributes:
        inside: whether a module is at work, so that calls are inner ones.
        in_backward: whether a backward is at work.
        since_step: backward passes since the latest step.
        busy: whether an event is being taken down, so that what happens meanwhile is no event.
        stopped: whether nothing more is looked at.
        fault: why watching ended early.
        thread: the thread that is watched.
        elsewhere: optimizer steps in other threads.
        on_step: called after each optimizer step, with the steps of all optimizers.
        on_backward: called after each backward, with their number.
        first: what takes down the first iteration, until its backward has ended.
        on_first: called with it then; nothing is looked at meanwhile.
        every: after the first 20, each so-manieth step of an optimizer is looked at closely.
        compiled: whether the program compiles anything.
        on_output: told of each outermost call of a module that is trained, with what it was given and returned.
        recent: the latest batches, if they are kept.
        samples: how many samples were trained on, counted if asked for.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.inside = False
        self.in_backward = False
        self.in_state_dict = False
        self.stopped = False
        self.fault: str | None = None
        self.error: str | None = None
        self.finished = False
        self.on_step: Callable[[int], object] = lambda steps: None
        self.on_backward: Callable[[int], object] = lambda backwards: None
        self.first: FirstIteration | None = None
        self.on_first: Callable[[FirstIteration], object] = lambda first: None
        self.every = EVERY
        self.compiled = False
        self.on_output: Callable[[torch.nn.Module, Any, Any, Any], object] | None = None
        self.recent: deque[Any] | None = None
        self.samples: int | None = None
        self.thread = get_ident()
        self.elsewhere = 0
        self.steps = 0
        self.backwards = 0
        self.names = Names()
        self.optimizers: dict[int, OptimizerTrack] = {}
        self.tracks: list[OptimizerTrack] = []
        self.losses = LossTrack()
        self.data = DataTrack()
        self.validations = ValidationTrack()
        self._without_graph = 0
        self.calls = LatestCalls()
        self.broken: Blame | None = None
        self.busy = False
        self._models: dict[int, ModelTrack] = {}
        self._schedulers = Schedulers()
        self._clips = Clips()
        self._scalers = Scalers()
        self._states = StateTrack()
        self._graphs: dict[tuple[Line, bool], GraphTrack] = {}
        self._used: set[int] = set()
        self._reached: list[OptimizerTrack] = []
        self._unheld_before: tuple[str, ...] = ()
        self._scaled = False
        self._input_grad = False
        self._latest_mode: Mode = "train"
        self._latest_model = 0
        self._grad_enabled = True
        self.since_step = 0
        self._widths: deque[int] = deque(maxlen=8)
        self.clock = Clock()

    def stop(self) -> None:
        """Look at nothing more."""
        self.stopped = self.inside = True
        self._drop_first()

    def _drop_first(self) -> None:
        if self.first is not None and self.first.forget():
            self.first = None

    def is_here(self) -> bool:
        """Whether this is the thread that is watched: the one that entered the watch, or the first that trains."""
        if not (self.backwards or self._models):
            self.thread = get_ident()
        return get_ident() == self.thread

    def steps_elsewhere(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer steps in another thread."""
        if not self.listens():
            return
        self.elsewhere += 1
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        used = (track for track in self.tracks if track.steps and track.ref() is not None)
        if any(not track.ids.isdisjoint(held) for track in used):
            self.fault = "watching ended early: several threads train the same parameters"
            self.stop()

    def listens(self) -> bool:
        """Whether events count now."""
        return not (self.stopped or self.busy or is_measuring())

    # Modules

    def outer_call(
        self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Run an outermost call of a module."""
        if self.busy or self.in_backward or is_measuring():
            return original(module, *args, **kwargs)
        if self.first is not None and not self.first.alive:
            self._drop_first()
        self.inside = True
        try:
            output = (
                original(module, *args, **kwargs)
                if self.first is None
                else self.first.module(original, module, args, kwargs)
            )
        finally:
            self.inside = self.stopped
        self._called(module, args, kwargs, output, torch.is_grad_enabled())
        return output

    @seen
    def _called(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any, grad: bool) -> None:
        model = self._models.get(id(module))
        if model is None or model.ref() is not module:
            model = self._models[id(module)] = ModelTrack(module)
            if model.ids:
                self.names.learn(module)
        current = self.data.current
        graph = has_graph(output)
        loss = scalar(output)
        if current is not None and loss is not None and self.data.evaluates and len(current.losses) < 5_000:
            current.losses.append(loss.detach())
        if graph and self.data.evaluates and current is not None and current.model_calls:
            self._mark(output, loss, evaluation=True)
        if not model.ids:
            return
        model.connect(self.tracks)
        if graph and not (self.steps and self.data.evaluates):
            self.calls.add(module, args, kwargs)
        self._grad_enabled = grad
        self._input_grad |= any(self._is_probed(part) for part in args)
        mode: Mode = "train" if module.training else "eval"
        self._latest_mode, self._latest_model = mode, id(module)
        if current is not None:
            current.model = id(module)
        if model.optimizers:
            if current is not None:
                current.model_calls[mode, self._grad_enabled] += 1
                current.graphs += graph
            self._note_mode(model, mode, graph)
        if self.steps < EARLY_STEPS and (width := class_count(output)) is not None:
            self._widths.append(width)
        if self.on_output is not None and model.optimizers and graph:
            self.on_output(module, args, kwargs, output)

    def _is_probed(self, part: Any) -> bool:
        """Whether a model's input is itself searched for by its gradient, as in adversarial training."""
        leaf = first_leaf(part) if isinstance(part, torch.Tensor) and part.requires_grad else None
        return leaf is not None and not any(id(leaf) in track.ids for track in self.tracks)

    def _note_mode(self, model: ModelTrack, mode: Mode, graph: bool) -> None:
        for track in model.optimizers:
            if graph:
                track.window_modes.add(mode)
                track.mode_dependent = track.mode_dependent or model.mode_dependent
            elif not track.evaluated_at or track.evaluated_at[-1] != track.steps:
                track.evaluated_at.append(track.steps)
        if not self._grad_enabled and mode == "train":
            current = self.data.current
            if current is None or current.data not in self.data.trained:
                model.quiet_train += 1
            model.quiet_steps[self.steps] += 1

    @seen
    def compiles(self, model: Any = None, *args: Any, **kwargs: Any) -> None:
        """Something is compiled: with a function that is no module, nothing may look on between calls."""
        self.compiled = True
        if not isinstance(model, torch.nn.Module):
            self._drop_first()

    @seen
    def loss_given(self, loss: Any) -> None:
        """A loss function of torch was called outside of modules."""
        if torch.is_grad_enabled() or not isinstance(loss, torch.Tensor) or (value := scalar(loss)) is None:
            return
        current = self.data.current
        if current is not None and self.data.evaluates:
            if len(current.losses) < 5_000:
                current.losses.append(value.detach())
        elif self._latest_mode == "eval":
            self.validations.add(line_at_work(), self._latest_model, self.steps, value.detach())

    # Backward

    @seen
    def backward_begins(self, tensors: Any, *, accumulates: bool) -> None:
        """A backward, or a computation of gradients that are returned, begins."""
        self.data.backward()
        self.in_backward = True
        self._reached = []
        if not accumulates:
            if self.first is not None:
                self.first.passed_by()
            return
        self.backwards += 1
        self.since_step += 1
        loss, self._scaled = self.losses.original(tensors)
        self._without_graph += loss is not None and loss.grad_fn is None and not torch.is_grad_enabled()
        if self.first is not None and self.first.alive:
            self.first.ends(loss)
        line = line_at_work()
        if loss is not None:
            self._mark(loss, loss, evaluation=False, line=line)
            early = self.steps < EARLY_STEPS
            bad = self.losses.add(loss, line, self.steps, early=early)
            stream = self.losses.streams[line]
            if stream.classes is None and len(set(self._widths)) == 1:
                stream.classes = self._widths[0]
            if bad is not None:
                bad.blame = self._blame()
        for track in self.optimizers.values():
            track.backward_begins()
        self._reached = list(self.optimizers.values())

    def backward_ends(self) -> None:
        """A backward has ended."""
        if self.listens():
            self._passed_back()
            self._look_into_first()
            self.on_backward(self.backwards)

    @seen
    def _look_into_first(self) -> None:
        if self.first is None or self.first.loss is None:
            return
        self.inside = True
        try:
            self.on_first(self.first)
        finally:
            self.inside = self.stopped
            self._drop_first()

    @seen
    def _passed_back(self) -> None:
        number = None if self._input_grad else self.backwards
        for track in self._reached:
            track.backward_ends(number, self._scaled)
        self._input_grad = False
        self.calls.clear()
        if self._scaled:
            self._scalers.backward()

    def _mark(self, output: Any, loss: Any, *, evaluation: bool, line: Line = None) -> None:
        tensor = loss if loss is not None else output
        if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
            line = line or line_at_work()
            track = self._graphs.setdefault((line, evaluation), GraphTrack(line, evaluation=evaluation))
            track.mark(tensor)

    def _blame(self) -> Blame:
        from debugkit.watch.blame import blame

        optimizers = [optimizer for track in self.tracks if (optimizer := track.ref()) is not None]
        self.inside = True
        try:
            return blame(list(self.calls), optimizers, self.names)
        finally:
            self.inside = self.stopped

    @seen
    def breaks_off(self) -> None:
        """An error ends the loop: look for values that are not finite if a backward was to come."""
        if self.calls:
            self.broken = self._blame()

    # Optimizers

    @seen
    def optimizer_made(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer exists."""
        self._track(unwrap(optimizer))

    def _track(self, optimizer: torch.optim.Optimizer) -> OptimizerTrack:
        track = self.optimizers.get(id(optimizer))
        if track is not None and track.ref() is optimizer:
            track.refresh()
            return track
        kind = type(optimizer).__name__
        same = sum(track.name.split(" ")[0] == kind for track in self.tracks)
        name = f"{kind} {same + 1}" if same else kind
        track = self.optimizers[id(optimizer)] = OptimizerTrack(
            optimizer, name, self.names, self._optimizer_ended
        )
        self.tracks.append(track)
        return track

    @seen
    def step_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer is about to step."""
        track = self._track(optimizer)
        closure = next((part for part in (*args[1:], *kwargs.values()) if callable(part)), None)
        if closure is None:
            self._drop_first()
        self._schedulers.look()
        track.scaled = track.scaled and not self._scalers.unscaled(optimizer)
        track.step_begins(closure is not None, self._used)

    def step_ends(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer has stepped."""
        if self.listens():
            self._stepped(optimizer)
            self.on_step(self.steps)

    @seen
    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        track = self._track(optimizer)
        track.step_ends(self._used, self.every)
        if len(self._used) > _REMEMBERED:
            self._used = {number for number in self._used if number > self.backwards - _REMEMBERED // 2}
        self.steps += 1
        self.since_step = 0
        self.data.step()
        self.calls.clear()
        if track is self.tracks[0]:
            self.clock.step(track.steps)

    # Schedulers, clipping, scaling

    @seen
    def scheduler_made(self, scheduler: Any) -> None:
        """A scheduler exists."""
        owner = self._owner(getattr(scheduler, "optimizer", None))
        self._schedulers.add(scheduler, owner, self._epochs())

    @property
    def schedulers(self) -> list[Any]:
        """The schedulers in use."""
        return self._schedulers.alive()

    def _owner(self, optimizer: Any) -> OptimizerTrack | None:
        """The track of an optimizer, also of one that wraps the real one and shows its groups as its own."""
        groups = getattr(optimizer, "param_groups", None)
        for track in self.tracks:
            real = track.ref()
            if real is not None and (real is optimizer or real.param_groups is groups):
                return track
        return None

    def _epochs(self) -> int:
        return sum(read.finished and read.backwards > 0 for read in self.data.passes)

    @seen
    def clips(self, parameters: Any, max_norm: Any, total_norm: torch.Tensor, *_: Any, **__: Any) -> None:
        """Gradients are clipped by their norm."""
        self._clips.add(parameters, float(max_norm), total_norm, self.optimizers.values(), self._scalers)

    @seen
    def scales(self, scaler: Any, outputs: Any, scaled: Any) -> None:
        """A loss is scaled."""
        self._scalers.of(scaler)
        self.losses.scaled(outputs, scaled)

    @seen
    def unscales(self, scaler: Any, optimizer: Any) -> None:
        """Gradients are unscaled."""
        self._scalers.of(scaler).unscaled.add(id(optimizer))

    @seen
    def scaler_step_begins(self, scaler: Any, optimizer: Any) -> None:
        """A scaler is asked to step an optimizer."""
        self._scalers.step_begins(scaler, optimizer, self.steps)

    @seen
    def scaler_step_ends(self, scaler: Any, optimizer: Any) -> None:
        """A scaler has stepped, or skipped."""
        taken = self._scalers.step_ends(scaler, self.steps)
        if not taken and (track := self.optimizers.get(id(optimizer))) is not None:
            track.skips(self._used)

    @seen
    def scaler_refuses(self, scaler: Any, error: BaseException) -> None:
        """A scaler raises instead of stepping or unscaling."""
        self._scalers.of(scaler).refused = one_line(error)

    @seen
    def scaler_updates(self, scaler: Any) -> None:
        """A scaler adapts its scale."""
        self._scalers.of(scaler).updates += 1

    # Data

    @seen
    def loader_made(self, loader: Any) -> None:
        """A loader exists."""
        self.data.loader_made(loader)

    @seen
    def pass_begins(self, loader: Any, iterator: Any) -> None:
        """A loader is iterated."""
        self.data.pass_begins(loader, iterator, self.steps)

    @seen
    def batch_read(self, iterator: Any, batch: Any, seconds: float) -> None:
        """A loader gave a batch."""
        self.clock.waits(seconds)
        before = self.data.current
        read = self.data.batch_read(iterator)
        if self.recent is not None:
            self.recent.append(batch)
        if self.samples is not None and read is not None and read.data in self.data.trained:
            self.samples += size(batch) or 0
        if self.first is not None and (loader := self.data.loader_of(iterator)) is not None:
            self.first.batch(loader, batch)
        if read is not None and read is not before and self.data.begins_anew(before, read):
            for track in self.optimizers.values():
                track.pass_begins()
        if read is None or read.batches == 1 or read.data not in self.data.trained:
            self.clock.pause()

    @seen
    def pass_ends(self, iterator: Any) -> None:
        """A loader is exhausted."""
        self.clock.pause()
        self.data.pass_ends(iterator)

    # States

    @seen
    def state_taken(self, model: torch.nn.Module, state: Any) -> None:
        """A model gave its state."""
        self._states.taken(model, state, self.steps)

    @seen
    def state_used(self, state: Any, by: torch.nn.Module | None = None) -> None:
        """A state is loaded or saved."""
        trained = frozenset[int]().union(*(track.ids for track in self.optimizers.values() if track.steps))
        self._states.used(state, by, self.steps, trained)

    # What was seen

    def record(self, *, thorough: bool = True) -> LoopRecord:
        """A frozen view of what was seen so far.

        Args:
            thorough: read every parameter that seems not to move.
        """
        with self.unseen():
            return self._record(thorough=thorough)

    def _record(self, *, thorough: bool) -> LoopRecord:
        passes, data, evaluations = self.data.logs()
        return LoopRecord(
            name=self.name,
            finished=self.finished,
            error=self.error,
            steps=self.steps,
            backwards=self.backwards,
            grad_enabled=self._grad_enabled,
            without_graph=self._without_graph,
            states_taken=self._states.count,
            unheld=self._unheld(),
            broken=self.broken,
            optimizers=tuple(self._log(track, thorough=thorough) for track in self.tracks),
            schedulers=self._schedulers.logs(self._epochs()),
            losses=tuple(stream.log() for stream in self.losses.streams.values()),
            clips=self._clips.logs(),
            scalers=self._scalers.logs(),
            passes=passes,
            data=data,
            quiet_calls=tuple(self._quiet_calls()),
            states=self._states.logs(),
            graphs=tuple(graph.log() for graph in self._graphs.values()),
            evaluations=(*evaluations, *self.validations.logs()),
            times=self.clock.log(),
        )

    def _log(self, track: OptimizerTrack, *, thorough: bool) -> OptimizerLog:
        alone = not any(other is not track and other.ids & track.ids for other in self.tracks)
        return track.log(self._used, alone=alone, thorough=thorough)

    @property
    def times(self) -> tuple[float, float]:
        """Seconds of the steps that were timed, and how much of them went by waiting for data."""
        return self.clock.seconds, self.clock.waiting

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What happens within is not taken for the program's doing."""
        busy, self.busy = self.busy, True
        try:
            with torch.no_grad():
                yield
        finally:
            self.busy = busy

    @seen
    def _optimizer_ended(self, track: OptimizerTrack) -> None:
        track.ends(self._log(track, thorough=True))

    def _unheld(self) -> tuple[str, ...]:
        """Names of the trained models' parameters that no optimizer holds; the latest, if the models are gone."""
        held = frozenset[int]().union(*(track.ids for track in self.tracks))
        models = [model for model in list(self._models.values()) if model.ids & held]
        alive = [module for model in models if (module := model.ref()) is not None]
        if alive:
            self._unheld_before = tuple(
                self.names.of(parameter)
                for module in alive
                for parameter in module.parameters()
                if parameter.grad is not None and id(parameter) not in held
            )
        return self._unheld_before

    def _quiet_calls(self) -> list[QuietCalls]:
        for model in self._models.values():
            model.connect(self.tracks)
        return [
            model.quiet_calls() for model in self._models.values() if model.optimizers and model.quiet_train
        ]
