"""Loose terms: numbers that a step computes and that train nothing, though they look like parts of its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from debugkit.loss.losses import LOSSES, bind_loss, loss_name
from debugkit.tracing.graph import Node, gradient_edge, leaves
from debugkit.tracing.playback import Playback
from debugkit.tracing.recording import VALUES_KEPT, Op, Ref
from debugkit.tracing.step_view import StepView

Kind = Literal["forgotten", "cut off", "without weight"]

_SUMS = VALUES_KEPT | {
    "add", "__add__", "__radd__", "radd", "__iadd__", "add_", "sub", "__sub__", "__rsub__", "rsub", "__isub__", "sub_",
    "stack", "cat", "sum", "mean", "nansum", "nanmean",
}  # fmt: skip
_PRODUCTS = frozenset(
    {
        "mul",
        "__mul__",
        "__rmul__",
        "rmul",
        "multiply",
        "__imul__",
        "mul_",
        "div",
        "__truediv__",
        "true_divide",
        "neg",
    }
)


@dataclass(frozen=True)
class LooseTerm:
    """A number that looks like a part of the loss, and has no effect on what is trained.

    Attributes:
        kind: ``forgotten`` (the loss does not depend on it), ``cut off`` (its value is added to the loss without its
            gradient) or ``without weight`` (it is multiplied by a constant 0).
        name: the loss function that made it; ``None`` where it was written out.
        place: where it is kept: a key of what the model or the step returned, or an attribute of a module.
        location: the source line that computed it.
        by_user: whether that line is the user's own.
        trains: names of the parameters that nothing else in the loss trains.
        read: whether its value is read, as a log does.
        held: whether it is kept beyond the step.
        shared: whether its predictions also reach the loss, as those of a metric do.
    """

    kind: Kind
    name: str | None
    place: str | None
    location: str | None
    by_user: bool
    trains: tuple[str, ...]
    read: bool
    held: bool
    shared: bool


def loose_terms(view: StepView) -> Iterator[LooseTerm]:
    """Every loose term of a step, each once."""
    calls = [op for op in view.recording.ops if op.func in LOSSES]
    told: set[int] = set()
    for op in calls:
        if view.node(op) in view.nodes and _is_weightless(view, op):
            told.add(op.index)
            yield _described(view, op.results[0], "without weight", [op], None)
    for key in _cut_off(view, calls):
        behind = _behind(view, key, calls)
        told.update(op.index for op in behind)
        yield _described(view, behind[0].results[0] if behind else key, "cut off", behind, None)
    places = dict(_places(view))
    for key in _ends(view, calls):
        behind = _behind(view, key, calls)
        if key not in told and told.isdisjoint(op.index for op in behind):
            yield _described(view, key, "forgotten", behind, places.get(key))


def _behind(view: StepView, key: int, calls: list[Op]) -> list[Op]:
    """The loss calls that a number was computed from: those outside the loss's graph, if there are any."""
    found = [op for op in calls if key in view.recording.derived(op.results)]
    return [op for op in found if view.node(op) not in view.nodes] or found


def _ends(view: StepView, calls: list[Op]) -> Iterator[int]:
    """Numbers with a gradient outside the loss's graph that nothing further was computed from."""
    recording = view.recording
    keys = dict.fromkeys([*recording.numbers, *(op.results[0] for op in calls if op.trained)])
    for key in keys:
        node = view.node(maker) if (maker := recording.maker(key)) is not None else None
        if node is not None and node not in view.nodes and not any(op.trained for op in recording.users(key)):
            yield key


def _described(view: StepView, key: int, kind: Kind, calls: list[Op], place: str | None) -> LooseTerm:
    recording = view.recording
    maker = calls[0] if calls else recording.maker(key)
    assert maker is not None
    return LooseTerm(
        kind=kind,
        name=loss_name(calls[0].func) if calls else None,
        place=place,
        location=maker.location,
        by_user=maker.by_user,
        trains=_only_here(view, key, kind),
        read=bool(recording.readers.get(key)) or bool(recording.users(key)),
        held=key in recording.numbers and recording.value(key) is not None,
        shared=_is_shared(view, key, calls),
    )


def _is_shared(view: StepView, key: int, calls: list[Op]) -> bool:
    """Whether a number judges, against data, predictions that the loss depends on as well."""
    if not calls:
        return key in view.labels
    return all(_judges_the_same(view, op) for op in calls)


def _judges_the_same(view: StepView, op: Op) -> bool:
    recording, given = view.recording, bind_loss(op.func, op.args, op.kwargs)
    predicted, target = given.get("input"), given.get("target")
    if not isinstance(predicted, Ref):
        return False
    if isinstance(target, Ref):
        known = recording.root(target.key) in view.targets
        if not known and target.key not in (view.labels or view.batch) - view.trained:
            return False
    way = Playback(recording, [recording.root(predicted.key)])
    raw = [recording.value(key) for key in way.variables]
    return bool(raw) and all(v is not None and gradient_edge(v) in view.nodes for v in raw)


def _only_here(view: StepView, key: int, kind: Kind) -> tuple[str, ...]:
    """Parameters that get no gradient but from one number; none where parts of the graph are hidden."""
    maker = view.recording.maker(key)
    node = view.node(maker) if maker is not None else None
    if node is None or any(isinstance(n, torch.autograd.function.BackwardCFunction) for n in view.nodes):
        return ()
    rest = leaves(view.roots) if kind != "without weight" else _leaves_without(view.roots, node)
    mine = leaves([node])
    return tuple(name for name, p in view.model.named_parameters() if id(p) in mine and id(p) not in rest)


def _leaves_without(roots: list[Node], blocked: Node) -> set[int]:
    stack, seen, found = list(roots), {blocked}, set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), torch.Tensor):
            found.add(id(variable))
        stack += [after for after, _ in node.next_functions if after is not None]
    return found


def _is_weightless(view: StepView, op: Op) -> bool:
    """Whether a call's number is multiplied by 0 on its way, by nothing that comes from the batch."""
    if op.results[0] not in view.recording.measured:
        return False
    weights = view.weights(op)
    if weights is None or bool(weights.any()) or not _leaves_without(view.roots, view.node(op)):
        return False
    path = view.path(op)
    return bool(path) and all(step.name in _SUMS | _PRODUCTS and _is_fixed(view, step, op) for step in path)


def _is_fixed(view: StepView, step: Op, op: Op) -> bool:
    """Whether what a product multiplies with does not depend on the batch."""
    mine = view.recording.derived(op.results)
    return step.name in _SUMS or all(key in mine or key not in view.batch for key in step.needs)


def _cut_off(view: StepView, calls: list[Op]) -> Iterator[int]:
    """Numbers that trainable weights shape and that are added to the loss without their gradient."""
    recording = view.recording
    start = recording.known(view.loss)
    stack = [] if start is None or not view.loss.requires_grad else [start]
    seen = set[int]()
    while stack:
        key = stack.pop()
        maker = recording.maker(key)
        if key in seen or maker is None:
            continue
        seen.add(key)
        if not maker.trained:
            source = _before_detach(view, key)
            origin = recording.maker(source)
            elsewhere = origin is not None and view.node(origin) in view.nodes
            if source in view.trained and view.result(maker).numel() == 1 and not elsewhere:
                yield source
        elif maker.name in _SUMS:
            stack += maker.needs
            yield from _as_floats(view, maker, calls)
        elif maker.name in _PRODUCTS:
            stack += [n for n in maker.needs if not any(o in view.batch for o in maker.needs if o != n)]


def _before_detach(view: StepView, key: int) -> int:
    """The number that one without a gradient was taken from."""
    while (maker := view.recording.maker(key)) is not None and not maker.trained and maker.needs:
        if maker.name not in VALUES_KEPT | {"detach", *_PRODUCTS} or len(maker.needs) > 1:
            break
        key = maker.needs[0]
    return key


def _as_floats(view: StepView, maker: Op, calls: list[Op]) -> Iterator[int]:
    """Loss calls whose value stands in a sum as a plain number, as `item` gives it."""
    for value in maker.args:
        if type(value) is float and value not in (0.0, 1.0):
            for op in calls:
                if view.recording.measured.get(op.results[0]) == value and op.results[0] in view.trained:
                    yield op.results[0]


def _places(view: StepView) -> Iterator[tuple[int, str]]:
    """Where numbers are kept: keys of mappings that were returned, attributes of modules."""
    for holder in (view.returned, view.outputs):
        if isinstance(holder, Mapping):
            yield from _named(view, holder.items(), "")
    for name, module in view.model.named_modules():
        yield from _named(view, vars(module).items(), f"{name}." if name else "")


def _named(view: StepView, items: Any, before: str) -> Iterator[tuple[int, str]]:
    for name, value in items:
        each = value if isinstance(value, (list, tuple)) and len(value) <= 100 else [value]
        for one in each:
            if isinstance(one, torch.Tensor) and one.numel() == 1:
                key = view.recording.known(one)
                if key is not None:
                    yield key, f"{before}{name}"
