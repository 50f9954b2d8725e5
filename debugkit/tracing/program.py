"""The user's own step: how this target turns a batch into outputs and a loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from debugkit.data import batch as batches
from debugkit.errors import Broken
from debugkit.target import Target


class DetachedLossError(Broken):
    """The step gave its loss as a plain number, which has no graph to train through."""


@dataclass(frozen=True)
class Outcome:
    """What one step gave.

    Attributes:
        loss: the loss as the step returned it (normally a scalar with a graph).
        outputs: the model's outputs, of the last call when the step called it several times.
    """

    loss: torch.Tensor
    outputs: Any


class Program:
    """Runs a target's step on a batch, under the precision that training will use."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def run(self, batch: Any) -> Outcome:
        """Forward and loss of a copy of one batch on the model's device.

        Raises:
            Broken: the step gave no loss; the message says what is missing.
        """
        batch = batches.fresh(batch, self._target.device)
        with self.precision():
            if self._target.training_step is not None:
                return self._run_training_step(batch)
            if self._target.loss_fn is not None:
                return self._run_loss_fn(batch)
            return self._run_own_loss(batch)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast as training will."""
        dtype = self._target.autocast_dtype
        if dtype is None:
            yield
            return
        with torch.autocast(self._target.device.type, dtype=dtype):
            yield

    def _run_training_step(self, batch: Any) -> Outcome:
        assert self._target.training_step is not None
        seen: list[Any] = []
        hook = self._target.model.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            returned = self._target.training_step(self._target.model, batch)
        finally:
            hook.remove()
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if isinstance(loss, (tuple, list)) and loss and isinstance(loss[0], torch.Tensor):
            loss = loss[0]
        return Outcome(_tensor(loss, "`training_step` returned"), seen[-1] if seen else None)

    def _run_loss_fn(self, batch: Any) -> Outcome:
        assert self._target.loss_fn is not None
        inputs, labels = batches.split(batch)
        if labels is None:
            raise Broken(
                "the batch has no labels for `loss_fn` (a mapping needs `labels`, a tuple a second element); "
                "pass `Target(training_step=...)` for a batch with a shape of its own"
            )
        outputs = call_model(self._target.model, inputs)
        predictions = primary_output(outputs) if _wants_tensor(self._target.loss_fn) else outputs
        return Outcome(_tensor(self._target.loss_fn(predictions, labels), "`loss_fn` returned"), outputs)

    def _run_own_loss(self, batch: Any) -> Outcome:
        model = self._target.model
        if isinstance(batch, Mapping):
            outputs = model(**batch)
        elif isinstance(batch, (tuple, list)):
            outputs = model(*batch)
        else:
            outputs = model(batch)
        loss = _own_loss(outputs)
        if loss is None:
            keys = f" (keys: {', '.join(map(str, batch))})" if isinstance(batch, Mapping) else ""
            raise Broken(
                f"`{type(model).__name__}` returned no loss for the batch{keys}; add `labels` to the batch, or pass "
                "`Target(loss_fn=...)` or `Target(training_step=...)`"
            )
        return Outcome(loss, outputs)


def call_model(model: torch.nn.Module, inputs: Any) -> Any:
    """Call the model as its forward signature asks: by keyword, by position, or with the inputs as one value."""
    names, required = _parameters(model)
    if isinstance(inputs, Mapping):
        if names is None or set(inputs) <= names:
            return model(**inputs)
        if len(inputs) == 1 and required <= 1:
            return model(next(iter(inputs.values())))
        known = {key: value for key, value in inputs.items() if key in names}
        return model(**known) if known else model(inputs)
    if isinstance(inputs, (tuple, list)) and not (required == 1 and names is not None and len(names) == 1):
        return model(*inputs)
    return model(inputs)


def primary_output(outputs: Any) -> Any:
    """The tensor among a model's outputs that a loss means: itself, ``logits``, or the first tensor."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        for key in ("logits", "prediction_logits", "out", "output", "pred"):
            if isinstance(outputs.get(key), torch.Tensor):
                return outputs[key]
        candidates = [value for key, value in outputs.items() if key != "loss"]
    elif isinstance(outputs, (tuple, list)):
        candidates = list(outputs)
    else:
        candidates = [getattr(outputs, "logits", None)]
    for value in candidates:
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value
    return outputs


def _parameters(model: torch.nn.Module) -> tuple[set[str] | None, int]:
    """Names that forward takes (``None`` with ``**kwargs``) and how many positional ones are required."""
    try:
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters.values()
    except (TypeError, ValueError):
        return None, 1
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = None
    else:
        names = {p.name for p in parameters if p.kind is not p.VAR_POSITIONAL}
    required = sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None, max(required, 2)
    return names, required


def _own_loss(outputs: Any) -> torch.Tensor | None:
    if isinstance(outputs, torch.Tensor):
        return outputs if outputs.ndim == 0 else None
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, (tuple, list)) and outputs:
        loss = next((value for value in outputs if isinstance(value, torch.Tensor) and value.ndim == 0), None)
    if isinstance(loss, torch.Tensor):
        return loss
    return None


def _wants_tensor(loss_fn: Any) -> bool:
    """torch's own losses take a tensor; anything else takes the model's outputs as they are."""
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    module = loss_fn.__module__ if inspect.isfunction(loss_fn) else type(loss_fn).__module__
    return module.startswith("torch.") or module == "builtins"


def _tensor(loss: Any, where: str) -> torch.Tensor:
    if isinstance(loss, torch.Tensor):
        return loss
    if isinstance(loss, float):
        raise DetachedLossError(
            f"{where} a Python float, which has no graph to train through; return the loss tensor"
        )
    if loss is None:
        raise Broken(f"{where} nothing; return the loss tensor")
    raise Broken(f"{where} a `{type(loss).__name__}`; return the loss as one tensor")
