"""Blame: which cut took a parameter out of the graph, in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from debugkit.tracing.cuts import Cut
from debugkit.tracing.graph import leaves

_DELIBERATE = ("detach", "detach_", "data", "item", "tolist", "numpy", "__array__", "tensor", "as_tensor")
_HARD = (
    "argmax",
    "argmin",
    "argsort",
    "topk",
    "gt",
    "lt",
    "ge",
    "le",
    "eq",
    "ne",
    "__gt__",
    "__lt__",
    "__ge__",
    "__le__",
)
_HINTS = {
    "detach": "remove the `detach()`",
    "detach_": "remove the `detach_()`",
    "data": "use the tensor itself, not its `.data`",
    "item": "keep the tensor; `.item()` gives a Python number without a graph",
    "tolist": "keep the tensor; `.tolist()` gives Python numbers without a graph",
    "numpy": "stay in torch; NumPy arrays have no graph",
    "__array__": "stay in torch; NumPy arrays have no graph",
    "tensor": "use the tensor itself; `torch.tensor(x)` copies the values without the graph",
    "as_tensor": "use the tensor itself; `torch.as_tensor(x)` of a list copies the values without the graph",
}


def blame(model: torch.nn.Module, cuts: Sequence[Cut], lost: Sequence[str]) -> list[tuple[Cut, list[str]]]:
    """The cuts that took the lost parameters out of the graph, each with the names of those that it explains."""
    remaining = set(lost)
    if not remaining:
        return []
    names = {id(p): name for name, p in model.named_parameters()}
    by_place: dict[tuple[str | None, str, bool], tuple[Cut, set[str]]] = {}
    for cut in cuts:
        if not (cut.op in (*_DELIBERATE, *_HARD) or cut.checkpointed or not cut.grad_enabled):
            continue
        if behind := {names[key] for key in leaves(cut.nodes) if key in names} & remaining:
            place, op = (cut.location, cut.op) if cut.grad_enabled else (None, "")
            by_place.setdefault((place, op, cut.checkpointed), (cut, set()))[1].update(behind)
    found = []
    for cut, behind in sorted(by_place.values(), key=lambda pair: (_rank(pair[0]), -len(pair[1]))):
        if covered := behind & remaining:
            remaining -= covered
            found.append((cut, [name for name in lost if name in covered]))
    return found


def last_cut(cuts: Sequence[Cut]) -> Cut | None:
    """The cut to blame where the loss itself has no graph."""
    strong = [cut for cut in cuts if cut.op in _DELIBERATE or not cut.grad_enabled]
    return next(reversed(strong or [cut for cut in cuts if cut.op in _HARD]), None)


def describe(cut: Cut) -> str:
    """How the cut took its values out of the graph, for the end of a message."""
    if cut.checkpointed:
        return "reentrant gradient checkpointing was given inputs that need no gradient"
    if cut.sampled:
        return "drawing a `sample()` cuts the graph"
    if not cut.grad_enabled:
        return f"`{cut.op}` runs with gradients switched off"
    name = cut.op.strip("_")
    shown = ".data" if name == "data" else f"{name}()"
    return f"`{shown}` cuts the graph"


def advise(cut: Cut) -> str:
    """The one thing to do about a cut, for a hint."""
    if cut.checkpointed:
        return "use `use_reentrant=False`, or call `model.enable_input_require_grads()`"
    if cut.sampled:
        return "draw it with `rsample()`, or train on `log_prob` of the sample"
    if not cut.grad_enabled:
        return "leave the `torch.no_grad()` block, or freeze these parameters if they are not meant to train"
    return _HINTS.get(cut.op, f"replace `{cut.op.strip('_')}` with a differentiable operation")


def _rank(cut: Cut) -> int:
    """How readily a cut is to blame: a stop-gradient into a loss is mostly meant, a comparison mostly a metric."""
    if cut.to_loss:
        return 3
    return 2 if cut.op in _HARD and not cut.op.startswith("arg") else 1 if cut.op in _HARD else 0
