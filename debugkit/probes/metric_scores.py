"""What the metric gives for outputs of known worth: perfect ones, those of other samples, one answer for all."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from debugkit.data.batch import map_tensors, size, sliceable, split, tensors, to_device
from debugkit.data.subset import few_samples
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.known_answers import GAPS, Answer, KnownAnswers
from debugkit.loss.metric_call import Form, MetricCall, Scores, close, name_of
from debugkit.loss.metric_reading import Reading, scores_of, takes_answers, works
from debugkit.loss.objective import Watch
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.program import primary_output

_SAMPLES, _SEQUENCES, _LEAST = 64, 8, 4
_MOST_VALUES = 2**23
_SEEDS = 4


@dataclass(frozen=True)
class MetricScores:
    """The metric's numbers, each by its name (empty for a metric that is one number).

    Attributes:
        name: what the metric is called.
        samples: how many samples were scored.
        kind: whether the loss asks for classes, yes or no, or values.
        form: how the metric takes the outputs; ``answers`` where it makes sense of class indices only.
        readings: the numbers for outputs of known worth.
        as_outputs: the readings for the outputs themselves, where only class indices make sense.
        shapes: of the main output and of the targets.
        halves: names of numbers that ask for scores above 0.5 where the loss decides at 0.
        diluted: for numbers that count ignored targets as wrong, the share that counts.
        misplaced: for numbers that are full for labels of neighbouring positions, what these get and how far ahead
            they are.
        shaken: for numbers that change for perfect outputs with the order of the samples, both values.
        unordered: the same for the model's own outputs.
        own: the model's numbers as it is.
    """

    cost: ClassVar[Cost] = "forward"
    name: str
    samples: int
    kind: Answer
    form: Form
    readings: Mapping[str, Reading]
    as_outputs: Mapping[str, Reading] | None
    shapes: tuple[tuple[int, ...], tuple[int, ...] | None]
    halves: tuple[str, ...]
    diluted: Mapping[str, float]
    misplaced: Mapping[str, tuple[float, int]]
    shaken: Mapping[str, tuple[float, float]]
    unordered: Mapping[str, tuple[float, float]]
    own: Scores

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        batches: Batches,
        step: TrainingStep,
        *,
        max_seconds: Annotated[float, Field(gt=0, description="seconds that all calls may take")] = 10.0,
    ) -> MetricScores:
        """Run the step once on some samples, in eval mode, and the metric some forty times.

        Raises:
            Unavailable: no metric, or what a perfect output is can't be told from the step.
            Broken: the step or the metric raised.
        """
        if target.metric is None:
            raise Unavailable("the target has no metric; pass `Target(metric=...)`")
        batch = _samples(target, batches)
        labels = split(batch)[1]
        if labels is None:
            raise Unavailable("the batch has no labels to score outputs with")
        call, answers = _pass(target, sandbox, batch)
        return _Scoring(target, sandbox, call, answers, labels, size(batch) or 0, max_seconds).measure()


def _samples(target: Target, batches: Batches) -> Any:
    labels = split(batches.first)[1]
    many = isinstance(labels, torch.Tensor) and labels.ndim > 1 and labels[0].numel() > 8
    part = few_samples(batches.items, _SEQUENCES if many else _SAMPLES)[0]
    rows = size(part)
    if not sliceable(part) or rows is None or rows < _LEAST:
        raise Unavailable(f"no batch of at least {_LEAST} samples to score")
    return to_device(part, target.device)


def _pass(target: Target, sandbox: Sandbox, batch: Any) -> tuple[MetricCall, KnownAnswers]:
    """One run of the step; the metric on its outputs, and what its loss calls right."""
    assert target.metric is not None
    watch = Watch()
    with sandbox.probe():
        target.model.eval()
        with watch:
            outcome = run_step(target, batch)
        watch.score(outcome.loss)
        main = primary_output(outcome.outputs)
        if not isinstance(main, torch.Tensor) or not main.is_floating_point() or not main.ndim:
            raise Unavailable("the model's main output is not known")
        if main.numel() > _MOST_VALUES:
            raise Unavailable(f"the output of {size(batch)} samples has {main.numel():,} values")
        if (found := watch.main_arguments) is None or watch.candidates != 1:
            raise Unavailable("no single loss of torch's tells which outputs are right")
        answers = KnownAnswers(main, *found)
        outputs = map_tensors(outcome.outputs, lambda tensor: tensor.detach())
        return MetricCall(target.metric, outputs, target.model), answers


class _Scoring:
    """All calls of one metric; each starts from the state in which the metric was handed over."""

    def __init__(
        self,
        target: Target,
        sandbox: Sandbox,
        call: MetricCall,
        answers: KnownAnswers,
        labels: Any,
        rows: int,
        max_seconds: float,
    ) -> None:
        self._target, self._sandbox, self._call = target, sandbox, call
        self._answers, self._labels, self._rows = answers, labels, rows
        self._end = time.monotonic() + max_seconds

    def measure(self) -> MetricScores:
        form, own = self._first()
        readings = self._readings(form)
        as_outputs: Mapping[str, Reading] | None = None
        if form in ("outputs", "tensor") and self._answers.kind != "values" and not works(readings):
            try:
                decided = self._readings("answers")
            except (Broken, Unavailable):
                decided = {}
            if takes_answers(decided):
                form, readings, as_outputs = "answers", decided, readings
        given = [tensor for _, tensor in tensors(self._labels)]
        assert self._target.metric is not None
        return MetricScores(
            name=name_of(self._target.metric),
            samples=self._rows,
            kind=self._answers.kind,
            form=form,
            readings=readings,
            as_outputs=as_outputs,
            shapes=(tuple(self._call.main.shape), tuple(given[0].shape) if len(given) == 1 else None),
            halves=tuple(self._halves(form)) if form != "answers" else (),
            diluted=self._diluted(form, readings),
            misplaced=self._misplaced(form, readings) if form != "answers" else {},
            shaken=self._unordered(form, self._answers.perfect(GAPS[0])) if form != "answers" else {},
            unordered=self._unordered(form, self._call.main) if form != "answers" else {},
            own=own,
        )

    def _first(self) -> tuple[Form, Scores]:
        """The form that the metric takes the model's own outputs in, and what it gives."""
        if self._call.takes_prediction:
            return "prediction", self._score("prediction", self._call.main)
        failure: Exception | None = None
        forms: tuple[Form, ...] = ("outputs", "tensor")
        for form in forms:
            try:
                return form, self._score(form, self._call.main)
            except (Broken, Unavailable) as error:
                failure = failure or error
        assert failure is not None
        if self._answers.kind != "values":
            try:
                own = self._score("answers", self._call.main)
                if takes_answers(self._readings("answers")):
                    return "answers", own
            except (Broken, Unavailable):
                pass
        raise failure

    def _score(
        self,
        form: Form,
        main: torch.Tensor,
        labels: Any = None,
        call: MetricCall | None = None,
        seed: int = 0,
    ) -> Scores:
        if time.monotonic() > self._end:
            raise Unavailable("the metric is too slow; raise `metric-scores.max-seconds`")
        main = self._answers.decided(main) if form == "answers" else main.clone()
        targets = map_tensors(self._labels if labels is None else labels, lambda tensor: tensor.clone())
        with self._sandbox.probe():
            seed_everything(seed)
            return (call or self._call)(form, main, targets)

    def _readings(self, form: Form) -> dict[str, Reading]:
        """The readings for certain answers; for hesitant ones where perfect ones are not best, as in a smoothed loss."""
        found: dict[str, Reading] = {}
        answers = self._answers
        constants = [self._score(form, main) for main in answers.constant()]
        for gap in GAPS if answers.kind != "values" else GAPS[:1]:
            perfect = self._score(form, answers.perfect(gap))
            wrong = [self._score(form, main) for main in answers.dealt_wrongly(gap)]
            for name, value in perfect.items():
                if name in found and found[name].verdict == "best":
                    continue
                reading = Reading(value, scores_of(wrong, name), scores_of(constants, name))
                if name not in found or reading.verdict == "best":
                    found[name] = reading
            if all(reading.verdict in ("best", "constant") for reading in found.values()):
                break
        return found

    def _halves(self, form: Form) -> Iterator[str]:
        answers = self._answers
        if answers.kind != "binary" or not answers.scores:
            return
        none, below, above = (self._score(form, answers.leaning(logit)) for logit in (-10.0, 0.49, 0.51))
        perfect = self._score(form, answers.perfect(GAPS[0]))
        for name, value in perfect.items():
            if name not in none or name not in below or name not in above or close(none[name], value):
                continue
            if close(below[name], none[name]) and close(above[name], value):
                yield name

    def _diluted(self, form: Form, readings: Mapping[str, Reading]) -> dict[str, float]:
        """Numbers that are the share of counted targets for perfect answers, and again when fewer count."""
        labels = self._labels
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.ndim < 2:
            return {}
        counted = labels != self._answers.ignored
        if self._answers.kind != "classes" or bool(counted.all()) or int(counted.sum()) < 2:
            return {}
        fewer = labels.clone()
        places = counted.flatten().nonzero().flatten()[::2]
        fewer.view(-1)[places] = self._answers.ignored
        perfect = self._answers.perfect(GAPS[0])
        again = self._score(form, perfect, fewer)
        shares = [
            (
                (given != self._answers.ignored).float().mean().item(),
                (kept != self._answers.ignored).float().mean().item(),
            )
            for given, kept in ((labels, fewer), (labels[:, 1:], fewer[:, 1:]))
        ]
        return {
            name: reading.perfect
            for name, reading in readings.items()
            if any(
                close(reading.perfect, share, 1e-5) and close(again.get(name, math.nan), less, 1e-5)
                for share, less in shares
            )
        }

    def _misplaced(self, form: Form, readings: Mapping[str, Reading]) -> dict[str, tuple[float, int]]:
        """Numbers that are not full for what the loss calls right, and full for labels some positions off."""
        found: dict[str, tuple[float, int]] = {}
        labels = self._labels
        if self._answers.kind != "classes" or not isinstance(labels, torch.Tensor):
            return found
        for ahead in (0, 1, -1):
            if (main := self._answers.beside(labels, ahead)) is None:
                break
            for name, value in self._score(form, main).items():
                full = any(close(value, most) for most in (1.0, 100.0))
                if full and name in readings and readings[name].perfect < 0.9 * value:
                    found.setdefault(name, (value, ahead))
        return found

    def _unordered(self, form: Form, main: torch.Tensor) -> dict[str, tuple[float, float]]:
        """Numbers of an output that change with the order of the samples, and not from call to call."""
        order = torch.randperm(self._rows, generator=torch.Generator().manual_seed(0))

        def reordered(value: Any) -> Any:
            return map_tensors(value, lambda t: t[order.to(t.device)] if t.shape[:1] == (self._rows,) else t)

        given, *again = (self._score(form, main, seed=seed) for seed in range(_SEEDS))
        assert self._target.metric is not None
        call = MetricCall(self._target.metric, reordered(self._call.outputs), self._target.model)
        other = self._score(form, reordered(main), reordered(self._labels), call)
        return {
            name: (value, other[name])
            for name, value in given.items()
            if name in other and not close(other[name], value, 1e-3)
            if all(close(each.get(name, math.nan), value) for each in again)
        }
