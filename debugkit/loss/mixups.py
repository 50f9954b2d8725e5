"""Losses that mix up what belongs to which: samples that broadcast against samples, rows made of several positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from debugkit.loss.losses import ELEMENTWISE
from debugkit.tracing.flow import Flow, LossUse, Meeting

_SCANNED = 512


@dataclass(frozen=True)
class Crossing:
    """An operation that held each sample against each other one by broadcasting.

    Attributes:
        name: such as ``sub`` or ``mse_loss``.
        shapes: of its two operands, with the axis that meets itself as N: such as ``[N, 1]`` and ``[N]``.
        location: the user's source line.
        widened: whether one operand had just been given a new axis, or both are equally deep.
        blind: whether the loss stays the same when one operand is rolled against the other.
        deliberate: whether the step holds samples against other samples of their own kind too.
    """

    name: str
    shapes: tuple[str, str]
    location: str | None
    widened: bool
    blind: bool
    deliberate: bool


@dataclass(frozen=True)
class Misread:
    """A loss call whose rows of logits are no rows of what the model gave.

    Attributes:
        name: the loss function.
        location: the user's source line.
        kind: ``classes``: the logits of one row come from several positions; ``axis``: the last layer puts as many
            classes last as there are positions, which the loss takes for the classes; ``samples``: predictions of one
            sample stand against the labels of another.
        origin: the shape of what was reshaped.
        shape: the shape that the loss was given.
    """

    name: str
    location: str | None
    kind: Literal["classes", "axis", "samples"]
    origin: tuple[int, ...]
    shape: tuple[int, ...]


def crossings(flow: Flow, loss: torch.Tensor) -> Iterator[Crossing]:
    """Operations on the way to the loss that broadcast one and the same axis against itself."""
    for met in flow.crossings:
        left, right = tuple(met.predicted.shape), tuple(met.batch.shape)
        side = _crossed_side(left, right)
        if side is None or not _matters(flow, loss, met):
            continue
        yield Crossing(
            name=met.name,
            shapes=(_shown(left, side), _shown(right, side)),
            location=met.location,
            widened=met.unsqueezed or len(left) == len(right),
            blind=_is_blind(flow, loss, met, side),
            deliberate=flow.paired,
        )


def _crossed_side(left: Sequence[int], right: Sequence[int]) -> int | None:
    """The length of an axis that broadcasting holds against itself."""
    width = max(len(left), len(right))
    one = [1] * (width - len(left)) + [*left]
    other = [1] * (width - len(right)) + [*right]
    wide = {(a, b) for a, b in zip(one, other, strict=True) if a != b}
    return next((a for a, b in wide if b == 1 and (1, a) in wide), None)


def _is_blind(flow: Flow, loss: torch.Tensor, met: Meeting, side: int) -> bool:
    """Whether the loss stays the same when one operand is rolled along the axis, in this call alone."""
    if met.name in ELEMENTWISE and not met.result.ndim:
        return True
    axis = _free_axis(met.predicted.shape, met.batch.shape, side)
    others = [_with(flow, loss, met, met.batch.roll(shift, axis)) for shift in range(1, min(side, 4))]
    return all(
        other is not None and torch.allclose(other.double(), loss.double(), rtol=1e-5, atol=1e-9)
        for other in others
    )


def _free_axis(predicted: Sequence[int], batch: Sequence[int], side: int) -> int:
    """The axis of the batch that the predictions are repeated along, counted from the end."""
    known = [1] * max(len(batch) - len(predicted), 0) + [*predicted]
    axes = [axis for axis in range(-len(batch), 0) if batch[axis] == side]
    return next((axis for axis in axes if known[axis] == 1), axes[0])


def _matters(flow: Flow, loss: torch.Tensor, met: Meeting) -> bool:
    """Whether the loss changes with an operand."""
    moved = ~met.batch if met.batch.dtype == torch.bool else met.batch + 1
    other = _with(flow, loss, met, moved)
    return other is not None and not torch.equal(other, loss)


def _with(flow: Flow, loss: torch.Tensor, met: Meeting, operand: torch.Tensor) -> torch.Tensor | None:
    """The loss with another operand in one call; ``None`` where what follows does not take it."""
    if met.argument is None:
        return None
    args = [*flow.tape.entries[met.entry].args]
    args[met.argument] = operand.detach()
    try:
        return flow.tape.replay({}, {met.entry: tuple(args)}).of(loss).detach()
    except Exception:  # a later call may refuse it in any way
        return None


def _shown(shape: Sequence[int], rows: int) -> str:
    return f"[{', '.join('N' if side == rows else str(side) for side in shape)}]"


def misread(flow: Flow, rows: int) -> Iterator[Misread]:
    """Loss calls whose input was reshaped where it had to be transposed."""
    found = [(call, _misread(flow, call, rows)) for call in flow.calls]
    aligned = {call.sources for call, one in found if one is None}
    for call, one in found:
        if one is not None and (one.kind != "samples" or call.sources not in aligned):
            yield one


def _misread(flow: Flow, call: LossUse, rows: int) -> Misread | None:
    given, target = call.given["input"], call.given["target"]
    if not isinstance(given, torch.Tensor) or not isinstance(target, torch.Tensor) or given.ndim < 2:
        return None
    classes = call.name in ("cross_entropy", "nll_loss") and target.ndim == given.ndim - 1
    if not classes and given.shape != target.shape:
        return None
    traced = flow.places.of(given)
    if traced is None:
        return None
    origin, places = traced
    kind: Literal["classes", "axis", "samples"] | None = None
    by_row = places.reshape(-1, 1)
    if classes:
        by_row = places.movedim(1, -1).reshape(-1, given.shape[1])
        kind = _mixed_classes(by_row, origin, flow.layers.get(id(origin), ""), rows)
    behind = flow.places.of(target)
    if kind is None and origin is not given and behind is not None:
        source, labels = behind
        mark = flow.mark(source)
        if mark.sources and not mark.predicted:
            mixed = _mixes_samples(by_row[:, 0], origin.shape, labels.reshape(-1), source.shape, rows)
            kind = "samples" if mixed else None
    if kind is None:
        return None
    return Misread(call.name, call.location, kind, tuple(origin.shape), tuple(given.shape))


def _mixed_classes(
    by_row: torch.Tensor, origin: torch.Tensor, layer: str, rows: int
) -> Literal["classes", "axis"] | None:
    """What is wrong where the logits of a row don't run along the axis of the classes.

    Args:
        by_row: ``[rows of logits, classes]``: the place of each logit in the origin.
        origin: what they were reshaped from.
        layer: the layer that gave it, where it was one.
        rows: how many samples there are.
    """
    picked = torch.linspace(0, len(by_row) - 1, min(len(by_row), _SCANNED)).long()
    where = _coordinates(by_row[picked], origin.shape)
    axes = [axis for axis, one in enumerate(where) if bool((one != one[:, :1]).any())]
    if not axes:
        return None
    channel = {"linear": origin.ndim - 1, "conv1d": 1, "conv2d": 1, "conv3d": 1}.get(layer)
    if math.prod(origin.shape[axis] for axis in axes) == by_row.shape[1]:
        last = origin.ndim == 3 and channel == 2 and axes == [1]
        return "axis" if last and origin.shape[1] == origin.shape[2] > 1 else None
    if 0 in axes and origin.shape[0] == rows and origin.ndim > 1:
        return "classes"
    if axes[0] == 0 and by_row.shape[1] % math.prod(origin.shape[axis] for axis in axes[1:]) == 0:
        return None
    if len(axes) > 1:
        return "classes"
    known = channel is not None and origin.shape[channel] > 1
    return "classes" if known and axes != [channel] else None


def _mixes_samples(
    given: torch.Tensor, origin: Sequence[int], labels: torch.Tensor, source: Sequence[int], rows: int
) -> bool:
    """Whether predictions and labels that stand against each other are of different samples."""
    axes = [axis for axis, side in enumerate(origin) if side == rows]
    if len(axes) != 1 or not source or source[0] != rows or len(given) != len(labels):
        return False
    mine = _coordinates(given, origin)[axes[0]]
    theirs = _coordinates(labels, source)[0]
    apart = mine - theirs
    return bool((apart != apart[0]).any())


def _coordinates(places: torch.Tensor, shape: Sequence[int]) -> list[torch.Tensor]:
    """Flat indices as one index per axis."""
    found, rest = [], places.long()
    for side in reversed(shape):
        found.append(rest % side)
        rest = rest // side
    return found[::-1]
