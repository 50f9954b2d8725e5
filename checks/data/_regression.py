"""What a loss on numbers is given: its targets, and the predictions that are held against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from debugkit.data.batch import fresh, split
from debugkit.data.labels import as_tensor
from debugkit.data.rows import Column, Rows
from debugkit.loss.losses import Facts, LossCall
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.reach import Reach, reach_of

from ._units import thinned

_ON_NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "gaussian_nll_loss")
_TAKES = {
    "binary_cross_entropy": (0.0, 1.0),
    "binary_cross_entropy_with_logits": (0.0, 1.0),
    "poisson_nll_loss": (0.0, float("inf")),
}
_FEW_CLASSES = 10
_ROUNDING = 1e-3
_MOST_VALUES = 2**20
_SAME_MEAN, _NEAR_MEAN, _SAME_SPREAD = 0.25, 0.01, 0.01


@dataclass(frozen=True)
class Regression:
    """Targets and predictions of one loss.

    Attributes:
        name: how findings call the loss.
        place: what tells it from other losses.
        where: the module that calls it, or the path of the targets.
        location: the user's source line.
        samples: targets that were seen.
        minimum: smallest target.
        maximum: largest target.
        mean: of the targets.
        std: their population standard deviation.
        width: from the 5 % to the 95 % quantile.
        beyond: share of the targets out of reach; ``None`` where they were not counted.
        lost: share of the targets' variance that is out of reach, which no training can explain.
        reach: what the operation that gives the predictions can give.
        predicted_mean: mean of the predictions.
        predicted_std: their standard deviation.
        own_range: whether the loss itself takes targets in a range only.
        is_label: whether they are the labels, as the loader gives them or prepared by the step.
    """

    name: str
    place: object
    where: str | None
    location: str | None
    samples: int
    minimum: float
    maximum: float
    mean: float
    std: float
    width: float
    beyond: float | None
    lost: float
    reach: Reach
    predicted_mean: float
    predicted_std: float
    own_range: bool = False
    is_label: bool = True

    @property
    def prepared(self) -> bool:
        """Whether the predictions start among the targets: an initialised bias, a scale in the model, a resumed run."""
        away = abs(self.predicted_mean - self.mean)
        if abs(self.mean) > self.std and away <= max(_SAME_MEAN * self.std, _NEAR_MEAN * abs(self.mean)):
            return True
        return away <= self.std and self.predicted_std >= _SAME_SPREAD * self.std


def regressions(
    target: Target, samples: Samples, first: Batches, sandbox: Sandbox, step: TrainingStep | None
) -> Iterator[Regression]:
    """Every loss on numbers that the traced step calls, or the user's own loss where it compares numbers directly."""
    if step is None:
        return
    for call in step.loss_calls:
        if not (call.connected or not step.has_graph) or call.target is None:
            continue
        if call.name in _ON_NUMBERS or call.name in _TAKES:
            yield from _of_call(call, samples, step.has_graph)
    if not step.loss_calls and samples.labels.kind == "values":
        yield from _of_own_loss(target, samples, first, sandbox, step)


def _of_call(call: LossCall, samples: Samples, has_graph: bool) -> Iterator[Regression]:
    predicted, facts = call.input, call.target
    assert facts is not None
    own_range = call.name in _TAKES
    if (
        call.input_node is None and has_graph and not own_range
    ):  # `mse_loss(targets, predictions)` is the same
        predicted, facts = facts, predicted
    reach = Reach(*_TAKES[call.name], call.name) if own_range else reach_of(call.input_node)
    column = _column_of(facts, samples.rows)
    values = _values(column) if column is not None else None
    if own_range and (values is None or _are_classes(values)):
        return
    masked = call.reduction == "none" or call.weight is not None
    described = _described(values, reach, masked) if values is not None else _from_facts(facts, reach, masked)
    yield Regression(
        name=f"`{call.name}`",
        place=(call.name, call.location),
        where=call.module or (column.path if column is not None and column.path else None),
        location=call.location,
        reach=reach,
        predicted_mean=predicted.mean,
        predicted_std=predicted.std,
        own_range=own_range,
        is_label=samples.labels.kind == "values" if column is None else column.is_label,
        **described,
    )


def _are_classes(values: torch.Tensor) -> bool:
    """Whether the targets are a few whole numbers, which are held against the model's outputs elsewhere."""
    found = {*values[: 2**16].tolist()}
    return len(found) <= _FEW_CLASSES and all(value == round(value) for value in found)


def _of_own_loss(
    target: Target, samples: Samples, first: Batches, sandbox: Sandbox, step: TrainingStep
) -> Iterator[Regression]:
    """A loss of the user's own that is least where the predictions are the targets themselves."""
    columns = [
        column for column in samples.rows.labels if column.is_floating or len(samples.rows.labels) == 1
    ]
    outputs = step.module_outputs.get("", ())
    if (
        (target.loss_fn is None and target.training_step is None)
        or len(columns) != 1
        or len(outputs) != 1
        or len(step.output_marks) < 2
    ):
        return
    values = _values(columns[0])
    if values is None or not _compares(target, first.first, sandbox, step.module_shapes.get("")):
        return
    reach = reach_of(outputs[0])
    name = "`loss_fn`" if target.training_step is None else "`training_step`"
    yield Regression(
        name=name,
        place=name,
        where=columns[0].path or None,
        location=None,
        reach=reach,
        predicted_mean=step.output_marks[0],
        predicted_std=step.output_marks[1],
        **_described(values, reach, masked=True),
    )


def _compares(target: Target, batch: Any, sandbox: Sandbox, shape: tuple[int, ...] | None) -> bool:
    """Whether the loss of predictions equal to the targets is 0, and that of others is not.

    A step is given a stand-in for the model that answers with the targets, so the model itself does not run.
    """
    labels = as_tensor(split(batch)[1])
    if labels is None or shape is None or labels.numel() != torch.Size(shape).numel():
        return False
    exact = labels.to(target.device, torch.float32).reshape(shape)
    with sandbox.probe():
        try:
            at, off = (_loss(target, batch, one) for one in (exact, exact + exact.abs().mean() + 1))
        except Exception:  # a loss of the user's own may ask for anything
            return False
    return abs(at) < 1e-3 * abs(off)


def _loss(target: Target, batch: Any, prediction: torch.Tensor) -> float:
    batch = fresh(batch, target.device)
    prediction = prediction.clone().requires_grad_()
    if target.training_step is None:
        assert target.loss_fn is not None
        loss = target.loss_fn(prediction, split(batch)[1])
    else:
        loss = target.training_step(_StandIn(prediction), batch)
    loss = loss["loss"] if isinstance(loss, Mapping) else loss
    return float(loss.detach().mean())


class _StandIn(torch.nn.Module):
    """Answers every call with the same predictions."""

    def __init__(self, prediction: torch.Tensor) -> None:
        super().__init__()
        self._prediction = [prediction]

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._prediction[0]


def _column_of(facts: Facts, rows: Rows) -> Column | None:
    """The column whose first batch the targets are, by its range."""
    size = rows.batch_sizes[0] if rows.batch_sizes else 0
    for column in sorted(rows.columns.values(), key=lambda one: not one.is_label):
        inside = [place for place, sample in enumerate(column.samples) if sample < size]
        if not inside or column.nonfinite[inside].any():
            continue
        low, high = float(np.min(column.minimum[inside])), float(np.max(column.maximum[inside]))
        values = sum(column.values[place].numel() for place in inside) if not column.reduced else None
        if values is not None and values != torch.Size(facts.shape).numel():
            continue
        width = max(high - low, 1e-12)
        partly = torch.Size(facts.shape).numel() > facts.rows
        exact = abs(facts.minimum - low) < 1e-3 * width and abs(facts.maximum - high) < 1e-3 * width
        inside_of = partly and low - 1e-3 * width <= facts.minimum and facts.maximum <= high + 1e-3 * width
        near = inside_of and facts.maximum - facts.minimum > 0.5 * width
        if high > low and (exact or near):
            return column
    return None


def _values(column: Column) -> torch.Tensor | None:
    """All finite values of a column, thinned out to a million."""
    found = [value.reshape(-1).double() for value in column.values if value.numel()]
    if not found:
        return None
    values = thinned(torch.cat(found), _MOST_VALUES)
    values = values[values.isfinite()]
    return values if len(values) else None


def _described(values: torch.Tensor, reach: Reach, masked: bool) -> dict[str, Any]:
    """What the targets of all scanned samples are.

    Args:
        values: all of them.
        reach: of the predictions.
        masked: whether the loss may leave some out, marked by a value of their own.
    """
    outside = _outside(values, reach)
    if masked and bool(outside.any()) and float(values[outside].min()) == float(values[outside].max()):
        values = values[~outside]
        outside = outside[~outside]
        if not len(values):
            values = outside = torch.zeros(1, dtype=torch.float64)
    low, high = thinned(values, 2**16).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return {
        "samples": len(values),
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "width": high - low,
        "beyond": float(outside.double().mean()),
        "lost": _lost(values, reach),
    }


def _lost(values: torch.Tensor, reach: Reach) -> float:
    beyond = values - values.clamp(reach.low, reach.high)
    return float(beyond.square().mean() / values.var(correction=0).clamp(min=1e-12))


def _outside(values: torch.Tensor, reach: Reach) -> torch.Tensor:
    ends = [abs(end) for end in (reach.low, reach.high) if abs(end) < float("inf")]
    room = _ROUNDING * max(float(values.std(correction=0)), 1e-6, *ends)
    return (values < reach.low - room) | (values > reach.high + room)


def _from_facts(facts: Facts, reach: Reach, masked: bool) -> dict[str, Any]:
    """Targets that are no column of the batch: what the loss saw of them in the first batch is all there is."""
    worst = max(reach.low - facts.minimum, facts.maximum - reach.high, 0.0)
    return {
        "samples": facts.rows,
        "minimum": facts.minimum,
        "maximum": facts.maximum,
        "mean": facts.mean,
        "std": facts.std,
        "width": min(3.3 * facts.std, facts.maximum - facts.minimum),
        "beyond": None,
        "lost": 0.0 if masked else worst**2 / max(facts.std**2, 1e-12) / facts.rows,
    }
