"""A trial: a model trained on the same few samples, from its values as given, by one optimizer after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from debugkit.data.ambiguity import blind_errors
from debugkit.data.batch import split
from debugkit.errors import Broken, one_line
from debugkit.loss.objective import Score, Watch
from debugkit.probes.training_step import backward, run_step
from debugkit.sandbox import Sandbox, own_steps
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.trials.curve import Curve, Outcome, has_stalled

_LOSS_GONE = 0.9
_ALL_RIGHT = 0.95


class Trial:
    """The samples and the model that every run shares.

    Args:
        target: what is trained.
        sandbox: puts everything back after a run.
        parts: the samples, as batches; one step goes through all of them.
        parameters: the model's trainable parameters.
        unavoidable: errors that no model can avoid on these samples.

    Attributes:
        unavoidable: the same, with those that the model can't avoid because it is blind to what differs.
        call: name and source line of the loss call that is scored.
        lowers_likelihood: whether the loss is a hand-written log-likelihood of the labels without its minus.
    """

    def __init__(
        self,
        target: Target,
        sandbox: Sandbox,
        parts: Sequence[Any],
        parameters: Sequence[torch.nn.Parameter],
        unavoidable: int,
    ) -> None:
        self._target = target
        self._sandbox = sandbox
        self._parts = parts
        self._parameters = parameters
        self.unavoidable = unavoidable
        self.call: tuple[str, str | None] | None = None
        self.lowers_likelihood = False
        self._main: int | None = None

    def works(self) -> bool:
        """Whether the step takes the samples: rows of a graph, say, can't be cut out."""
        try:
            with self._sandbox.probe():
                run_step(self._target, self._parts[0])
        except Broken:
            return False
        return True

    def run(
        self,
        name: str,
        optimizer: Any,
        steps: int,
        end: float,
        clip: float | None = None,
        warm_up: int = 0,
        enough: Callable[[Sequence[Score]], bool] = lambda scores: False,
    ) -> Curve:
        """Train until the samples are memorised, or nothing more is to be learned from going on.

        Args:
            name: how the curve is called.
            optimizer: over the model's own parameters.
            steps: at most this many.
            end: the moment on the monotonic clock at which to stop.
            clip: largest gradient norm; sparse gradients are made dense for it.
            warm_up: steps over which the learning rates rise to those given.
            enough: whether the scores so far show that the run learns.

        Raises:
            RefusedError: the optimizer's step raised.
            Broken: the user's step raised, or its loss lost the graph.
        """
        scores: list[Score] = []
        tracks: tuple[list[float], list[float]] = ([], [])
        outcome: Outcome = "falling"
        rates = [group.get("lr") for group in optimizer.param_groups]
        with self._sandbox.probe():
            if not self._sandbox.training[""]:
                self._target.model.train()
            for index in range(steps):
                scores.append(self._pass())
                tracks[0].append(scores[-1].by_value(scores[0]))
                tracks[1].append(scores[-1].by_errors(self.unavoidable))
                if ended := self._ended(scores, tracks, end):
                    outcome = ended
                    break
                if enough(scores):
                    outcome = "learning"
                    break
                if clip is not None:
                    _densify(self._parameters)
                    torch.nn.utils.clip_grad_norm_(self._parameters, clip)
                if index < warm_up:
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = None if rate is None else rate * (index + 1) / warm_up
                _advance(optimizer)
        if outcome in ("stalled", "falling") and tracks[1][-1] >= _ALL_RIGHT:
            outcome = "memorised"
        return Curve(name, outcome, tuple(scores), tuple(map(max, *tracks)))

    def _pass(self) -> Score:
        scores = []
        for parameter in self._target.model.parameters():
            parameter.grad = None
        for part in self._parts:
            seed_everything(0)
            watch = Watch(self._main)
            with watch:
                outcome = run_step(self._target, part)
            scores.append(watch.score(outcome.loss))
            first = self._main is None
            if first:
                self._main = watch.main
                self.call = watch.main_call
                rows = watch.rows()
                blind = blind_errors(part, *rows) if rows is not None else 0
                self.unavoidable = max(self.unavoidable, blind * len(self._parts))
            if not outcome.loss.requires_grad:
                raise Broken("the loss lost its graph while the model was trained on a few samples")
            with watch:
                backward(loss := outcome.loss / len(self._parts))
            if first:
                self.lowers_likelihood = watch.lowers_likelihood(float(loss.detach().mean()), split(part)[1])
        return Score.total(scores)

    def _ended(
        self, scores: Sequence[Score], tracks: Sequence[Sequence[float]], end: float
    ) -> Outcome | None:
        if not math.isfinite(scores[-1].loss):
            return "diverged"
        if len(scores) >= 2 and all(self._knows(score, scores[0]) for score in scores[-2:]):
            return "memorised"
        if time.monotonic() > end:
            return "out of time"
        return "stalled" if all(map(has_stalled, tracks)) else None

    def _knows(self, score: Score, first: Score) -> bool:
        gone = score.by_value(first)
        if gone >= _LOSS_GONE:
            return score.kind != "unknown" or score.value >= 0
        return score.by_errors(self.unavoidable) >= _ALL_RIGHT and not gone < 0.5


class RefusedError(Exception):
    """The user's optimizer can't be stepped like this."""


def _advance(optimizer: Any) -> None:
    with own_steps():
        try:
            optimizer.step()
        except Exception as error:
            raise RefusedError(f"`{type(optimizer).__name__}.step()` raised: {one_line(error)}") from error


def _densify(parameters: Sequence[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.layout is not torch.strided:
            parameter.grad = parameter.grad.to_dense()
