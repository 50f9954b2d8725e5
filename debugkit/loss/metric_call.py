"""Calls of a metric, as a loop makes them: a function of outputs and targets, or transformers' ``compute_metrics``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from debugkit.data.batch import map_tensors, tensors
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.tracing.program import primary_output
from debugkit.tracing.source import is_library_file, shorten

Form = Literal["outputs", "tensor", "answers", "prediction"]
Scores = dict[str, float]

SINGLE = ""
"""The name of the one value of a metric that is a number."""


class MetricCall:
    """A metric with the outputs of one model, of which the main one is replaced.

    Args:
        metric: the user's.
        outputs: the model's outputs.
        model: the model.

    Attributes:
        outputs: the model's outputs.
        main: the main one.
        takes_prediction: whether it takes one argument, an ``EvalPrediction``.
    """

    def __init__(self, metric: Callable[..., Any], outputs: Any, model: torch.nn.Module) -> None:
        self._metric, self.outputs = metric, outputs
        self.main: torch.Tensor = primary_output(outputs)
        keys = getattr(getattr(model, "config", None), "keys_to_ignore_at_inference", None)
        self._left_out = {"loss", *(keys or ())}
        self.takes_prediction = _required(metric) == 1

    def __call__(self, form: Form, main: torch.Tensor, targets: Any) -> Scores:
        """Score outputs.

        Args:
            form: how they are given: all ``outputs``, the main ``tensor``, the class indices that are its
                ``answers`` (already in ``main``), or a ``prediction`` object.
            outputs: the model's outputs.
        main: the main one.
            targets: as the batch holds them.

        Raises:
            Broken: the metric raised, or gave no number.
            Unavailable: a library that it calls refused the samples.
        """
        given: tuple[Any, ...]
        if form == "prediction":
            given = (self._prediction(main, targets),)
        elif form == "outputs":
            given = (self._replaced(main), targets)
        else:
            given = (main, targets)
        try:
            with torch.no_grad():
                result = self._metric(*given)
        except Exception as error:
            said = f"the metric raised{_place(error)}: {one_line(error)}"
            if isinstance(error, ValueError) and _in_library(error):
                raise Unavailable(said) from error
            raise Broken(said) from error
        return _numbers(result)

    def _replaced(self, main: torch.Tensor) -> Any:
        return map_tensors(self.outputs, lambda tensor: main if tensor is self.main else tensor)

    def _prediction(self, main: torch.Tensor, targets: Any) -> Any:
        try:
            from transformers import EvalPrediction
        except ImportError as error:
            raise Unavailable("the metric takes one argument; install transformers to call it") from error
        outputs = self._replaced(main)
        if isinstance(outputs, Mapping):
            outputs = tuple(
                value
                for key, value in outputs.items()
                if key not in self._left_out and next(tensors(value), None) is not None
            )
        elif isinstance(outputs, (tuple, list)):
            outputs = tuple(v for v in outputs if not (isinstance(v, torch.Tensor) and v.ndim == 0))
        if isinstance(outputs, tuple) and len(outputs) == 1:
            outputs = outputs[0]
        return EvalPrediction(predictions=_numpy(outputs), label_ids=_numpy(targets))


def name_of(metric: Callable[..., Any]) -> str:
    """What a metric is called in the user's code."""
    while hasattr(metric, "func"):
        metric = metric.func
    name = getattr(metric, "__name__", type(metric).__name__)
    return "the metric" if name == "<lambda>" else f"`{name}`"


def _numpy(value: Any) -> Any:
    def convert(tensor: torch.Tensor) -> Any:
        plain = tensor.detach().cpu()
        return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()

    if isinstance(value, (tuple, list)):
        return tuple(_numpy(item) for item in value if item is not None)
    if isinstance(value, torch.Tensor):
        return convert(value)
    return {key: _numpy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _required(metric: Callable[..., Any]) -> int:
    """How many arguments a metric must be given by position; 2 where it does not say."""
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return 2
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )


def _numbers(result: Any) -> Scores:
    if result is None:
        raise Broken("the metric returned nothing; return a number or a dictionary of numbers")
    if isinstance(result, Mapping):
        found = {str(key): number for key, value in result.items() if (number := _number(value)) is not None}
        if not found:
            raise Unavailable("the metric returned no numbers")
        return found
    number = _number(result)
    if number is None:
        raise Unavailable(f"the metric returned a `{type(result).__name__}`, not a number or a dictionary")
    return {SINGLE: number}


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, torch.Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_complex() else None
    item, size = getattr(value, "item", None), getattr(value, "size", None)
    if callable(item) and size == 1:
        plain = item()
        return float(plain) if isinstance(plain, (int, float)) else None
    return None


def close(one: float, other: float, tolerance: float = 1e-6) -> bool:
    """Whether two scores are the same up to rounding; two that are not numbers are."""
    if not math.isfinite(one) or not math.isfinite(other):
        return one == other or (math.isnan(one) and math.isnan(other))
    return abs(one - other) <= tolerance * max(1.0, abs(one), abs(other))


def _frames(error: BaseException) -> list[tuple[str, int]]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _in_library(error: BaseException) -> bool:
    return is_library_file(_frames(error)[-1][0])


def _place(error: BaseException) -> str:
    own = [(file, line) for file, line in _frames(error) if not is_library_file(file)]
    return f" at {shorten(own[-1][0])}:{own[-1][1]}" if own else ""
