"""What comes after the model's last weights: from raw outputs, through the loss functions, to the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from debugkit.data.batch import size, sliceable, split, take
from debugkit.data.labels import tensors_by_path
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.loose_terms import LooseTerm, loose_terms
from debugkit.loss.losses import LOSSES, Expects, bind_loss, loss_name
from debugkit.loss.term import LossTerm
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.playback import Playback
from debugkit.tracing.recording import VALUES_KEPT, Op, Recording, Ref
from debugkit.tracing.step_view import StepView

MOST_ROWS = 8


@dataclass(frozen=True, eq=False)
class LossTail:
    """The end of one step on a few samples, with dropout off.

    Attributes:
        rows: how many samples; all of the first batch where it can't be cut.
        loss: the step's loss.
        terms: the loss calls that it depends on, in order.
        loose: numbers that were computed and that the loss does not depend on.
    """

    cost: ClassVar[Cost] = "forward"
    rows: int | None
    loss: float
    terms: tuple[LossTerm, ...]
    loose: tuple[LooseTerm, ...]

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches) -> LossTail:
        """Run the step once on at most eight samples of the first batch, in train mode.

        Raises:
            Broken: the user's step raised on the whole batch, too.
        """
        part = few_rows(batches.first)
        try:
            return step_tail(target, sandbox, part, whole=batches.first)
        except Broken:
            if part is batches.first:
                raise
            return step_tail(target, sandbox, batches.first)


def few_rows(batch: Any, most: int = MOST_ROWS) -> Any:
    """Evenly spaced samples of a batch, at most half of it where it is small; all of it where it can't be cut."""
    rows = size(batch)
    if not rows or not sliceable(batch):
        return batch
    count = min(most, max(2, rows // 2), rows)
    return batch if count == rows else take(batch, [index * rows // count for index in range(count)])


def step_tail(target: Target, sandbox: Sandbox, batch: Any, whole: Any = None) -> LossTail:
    """The end of one step on a batch, in train mode with dropout off.

    Args:
        target: the target.
        sandbox: its sandbox.
        batch: the batch.
        whole: the batch that it is a part of.

    Raises:
        Broken: the user's step raised.
        Unavailable: the model has no values.
    """
    recording = Recording(LOSSES)
    returned: list[Any] = []
    with sandbox.probe():
        if not sandbox.training[""]:
            target.model.train()
        with recording:
            outcome = run_step(_keeping(target, returned), batch)
        if outcome.loss.is_meta:
            raise Unavailable("the model is on the meta device, where nothing has values")
        _, labels = split(batch)
        view = StepView(
            target.model,
            recording,
            outcome.loss,
            returned[-1] if returned else outcome.outputs,
            outcome.outputs,
            batch=_keys(recording, batch),
            labels=_keys(recording, labels),
            whole=_counterparts(recording, batch, whole),
        )
        terms = tuple(_terms(view))
        loose = tuple(loose_terms(view))
    loss = outcome.loss
    return LossTail(
        rows=size(batch),
        loss=float(loss.detach().float().mean()) if loss.numel() else float("nan"),
        terms=terms,
        loose=loose,
    )


def _terms(view: StepView) -> Iterator[LossTerm]:
    for op in view.recording.ops:
        if not op.trained or view.node(op) not in view.nodes:
            continue
        given = _arguments(view, op) if op.func in LOSSES else _difference(view, op)
        at = given.get("input")
        values = {name: view.recording.value(v.key) if isinstance(v, Ref) else v for name, v in given.items()}
        if (
            not isinstance(at, Ref)
            or at.key not in view.trained
            or any(isinstance(given[n], Ref) and values[n] is None for n in given)
        ):
            continue
        yield _term(view, op, at.key, values, given.get("target"))


def _arguments(view: StepView, op: Op) -> dict[str, Any]:
    """A loss call's arguments, the predictions as input where the two were given the other way round."""
    given = bind_loss(op.func, op.args, op.kwargs)
    target = given.get("target")
    if loss_name(op.func) in _SYMMETRIC and isinstance(target, Ref) and target.key in view.trained:
        at = given.get("input")
        if not isinstance(at, Ref) or at.key not in view.trained:
            given["input"], given["target"] = target, at
    return given


def _difference(view: StepView, op: Op) -> dict[str, Any]:
    """Prediction and target of a subtraction whose result is measured and then is the loss."""
    keys = [value.key for value in op.args if isinstance(value, Ref)]
    if op.name not in _MINUS or len(keys) != 2 or len(op.args) != 2:
        return {}
    predicted = [key for key in keys if key in view.trained]
    targets = [key for key in keys if key in (view.labels or view.batch) and key not in view.trained]
    if len(predicted) != 1 or len(targets) != 1 or any(o.name not in _MEASURES for o in view.path(op)):
        return {}
    return {"input": Ref(predicted[0]), "target": Ref(targets[0])}


def _squared(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (input - target).square()


_SYMMETRIC = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
_MINUS = frozenset({"sub", "__sub__", "rsub", "__rsub__", "subtract"})
_MEASURES = VALUES_KEPT | {
    "pow", "__pow__", "square", "abs", "absolute", "mul", "__mul__", "__rmul__", "rmul", "mean", "sum", "sqrt", "norm",
    "linalg_vector_norm", "linalg_norm", "vector_norm", "div", "__truediv__", "true_divide", "add", "__add__",
    "__radd__", "radd", "neg", "cosh", "log", "nanmean", "nansum", "stack", "clamp_min",
}  # fmt: skip


def _term(view: StepView, op: Op, at: int, values: Mapping[str, Any], target: Any) -> LossTerm:
    recording = view.recording
    known = op.func in LOSSES
    expects: Expects = LOSSES[op.func] if known else "values"
    root = recording.root(at)
    maker = recording.maker(root)
    normalised = maker is not None and maker.name in _NORMALISERS.get(expects, ()) and bool(maker.needs)
    start = recording.root(maker.needs[0]) if normalised and maker else root
    way = Playback(recording, [start])
    heads, features = weights_behind(recording, way, view.model)
    inside = {key for part in way.ops for key in part.results} | set(way.variables)
    return LossTerm(
        name=loss_name(op.func) if known else "difference",
        func=op.func if known else _squared,
        expects=expects,
        given={n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in values.items()},
        value=view.result(op),
        weights=_weights(view, op),
        location=op.location,
        from_batch=isinstance(target, Ref) and target.key in view.batch,
        knows_labels=any(key in view.labels and key not in inside for part in way.ops for key in part.needs),
        normalised=normalised,
        way=way,
        back=Playback(recording, [at], sources=[start]),
        whole_target=_whole_target(view, target.key) if isinstance(target, Ref) else None,
        heads=heads,
        features=features,
    )


def _whole_target(view: StepView, target: int) -> torch.Tensor | None:
    """The targets of the whole batch, played from its tensors as those of the part were."""
    played = Playback(view.recording, [target], sources=view.whole) if view.whole else None
    if played is None or not played.complete:
        return None
    try:
        (result,) = played({key: value.to(played.variables[key].device) for key, value in view.whole.items()})
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    return result.detach()


def _weights(view: StepView, op: Op) -> torch.Tensor | None:
    """Of a difference, only whether it counts."""
    weights = view.weights(op)
    return weights if weights is None or op.func in LOSSES else (weights != 0).to(weights.dtype)


_NORMALISERS: dict[str, tuple[str, ...]] = {
    "log-probabilities": ("log_softmax",),
    "probabilities": ("sigmoid", "softmax"),
}


def weights_behind(
    recording: Recording, way: Playback, model: torch.nn.Module
) -> tuple[tuple[str, ...], float | None]:
    """Names of the parameters that gave the variables of a way, and the size of what they were multiplied with.

    Returns:
        The names, and the largest root mean square; ``None`` where nothing was multiplied.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, None] = {}
    sizes = []
    for key in way.variables:
        op = recording.maker(key)
        value = recording.value(key if op is None else recording.root(key))
        if op is None:
            found.update(dict.fromkeys([names[id(value)]] if id(value) in names else []))
            continue
        for need in op.needs:
            source = recording.value(recording.root(need))
            if recording.is_weight(need):
                found.update(dict.fromkeys([names[id(source)]] if id(source) in names else []))
            elif source is not None and source.is_floating_point() and source.numel():
                sizes.append(float(source.detach().float().square().mean().sqrt()))
    return tuple(found), max(sizes, default=None)


def _keeping(target: Target, returned: list[Any]) -> Target:
    """The target, with what its step returns kept: a term that is handed back for a log is not forgotten."""
    step = target.training_step
    if step is None:
        return target

    def training_step(model: torch.nn.Module, batch: Any) -> Any:
        returned.append(step(model, batch))
        return returned[-1]

    return replace(target, training_step=training_step)


def _keys(recording: Recording, part: Any) -> set[int]:
    """Keys of all that was computed from the tensors in a part of the batch."""
    found = [tensor for each in tensors_by_path(part).values() for tensor in each]
    return recording.derived(key for tensor in found if (key := recording.known(tensor)) is not None)


def _counterparts(recording: Recording, part: Any, whole: Any) -> dict[int, torch.Tensor]:
    """The tensors of a whole batch by the keys of those that were cut from them."""
    if whole is None or whole is part:
        return {}
    every = tensors_by_path(whole)
    return {
        key: rows.detach()
        for path, each in tensors_by_path(part).items()
        for one, rows in zip(each, every.get(path, ()), strict=False)
        if (key := recording.known(one)) is not None
    }
