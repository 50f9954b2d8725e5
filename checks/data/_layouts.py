"""The dimensions over which a convolution slides, against those along which its input has neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from debugkit.tracing.entries import Entry

from ._neighbours import neighbours, neighbours_across_samples, same_order

_COLOURS = (1, 3, 4)
_SIDE = 8
_SQUARE = 16
_SMOOTH = 0.5
_ORDERED, _UNORDERED = 0.8, 0.2
_FEWEST_ROWS = 4
_SAME, _OTHER = 0.95, 0.9


@dataclass(frozen=True)
class Layout:
    """A convolution that slides over the wrong dimensions.

    Attributes:
        said: what is wrong, as a clause.
        hint: the next action.
        proven: whether the values show it, and not the shape alone.
        measured: the numbers.
    """

    said: str
    hint: str
    proven: bool
    measured: dict[str, float] = field(default_factory=dict)


def layout_of(entry: Entry) -> Layout | None:
    """What contradicts a convolution's idea of its input; ``None`` where nothing does."""
    if entry.sample is None or entry.sample.ndim != entry.dims + 2 or not bool(entry.sample.isfinite().all()):
        return None
    if entry.dims == 2:
        return _image(entry, entry.sample)
    return _sequence(entry, entry.sample) if entry.dims == 1 else None


def viewed(entry: Entry, values: torch.Tensor) -> bool:
    """Whether a layer gets an input's values in their old order under a shape with its dimensions swapped.

    Args:
        entry: a layer with a sample of its input.
        values: ``[rows, ...]`` the input's first rows as the loader gave them.
    """
    sample = entry.sample
    if sample is None or sample.shape[1:].numel() != values.shape[1:].numel():
        return False
    given, taken = _true_sides(values.shape[1:]), _true_sides(sample.shape[1:])
    if given == taken or sorted(given) != sorted(taken):
        return False
    rows = min(len(sample), len(values))
    there, here = sample[:rows].reshape(rows, *taken), values[:rows].reshape(rows, *given)
    kept = max(_alike(there, here), _alike(here, there))
    return kept > _SAME and _moved(there, here) < _OTHER


def _alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """The correlation in memory, also where every channel of the first shape was normalised by itself."""
    channels = min(range(1, one.ndim), key=lambda dim: one.shape[dim])
    return max(same_order(one, other), same_order(one, other, channels))


def _true_sides(shape: Sequence[int]) -> list[int]:
    return [side for side in shape if side != 1]


def _moved(sample: torch.Tensor, values: torch.Tensor) -> float:
    """The best correlation with the input under any permutation of its dimensions that gives the taken shape."""
    orders = _orders(list(values.shape[1:]), list(sample.shape[1:]))
    moved = (values.permute(0, *(place + 1 for place in order)) for order in orders)
    return max((_alike(sample, one) for one in moved), default=-1.0)


def _orders(given: list[int], taken: list[int]) -> list[list[int]]:
    """The permutations that turn one shape into another."""
    if not taken:
        return [[]]
    return [
        [place, *rest]
        for place, side in enumerate(given)
        if side == taken[0]
        for rest in _orders([*given[:place], -1, *given[place + 1 :]], taken[1:])
    ]


def _image(entry: Entry, values: torch.Tensor) -> Layout | None:
    """Channels-last images in front of a convolution with as many channels as the images are high."""
    _, high, wide, last = values.shape
    if last not in _COLOURS or min(high, wide) < _SIDE or entry.weight_shape[-1] < 2:
        return None
    down, across = neighbours(values, 1), neighbours(values, 2)
    smooth = min(down, across) > _SMOOTH
    if not smooth and not (high == wide >= _SQUARE):
        return None
    why = (
        f"neighbours correlate {down:.2f} along its channels and {across:.2f} along the next dimension: "
        if smooth
        else ""
    )
    return Layout(
        f"{why}these are images with their channels last, so it takes the rows of pixels for channels and slides "
        f"over the {'colours' if last > 1 else 'single channel'}",
        "permute the images to channels first, `x.permute(0, 3, 1, 2)`, and give the layer "
        f"`in_channels={last}`",
        smooth,
        {"down": down, "across": across},
    )


def _sequence(entry: Entry, values: torch.Tensor) -> Layout | None:
    """Sequences ``[length, channels]`` in front of a convolution with as many channels as they are long."""
    rows, length, channels = values.shape
    if rows < _FEWEST_ROWS or channels < 2 or length < 2 * channels or entry.weight_shape[-1] < 2:
        return None
    along = neighbours_across_samples(values, 1)
    beside = neighbours_across_samples(values, 2)
    if not (along > _ORDERED and beside < _UNORDERED):
        return None
    return Layout(
        f"neighbours correlate {along:.2f} along its channels and {beside:.2f} along the dimension it slides over: "
        "time lies along the channels",
        f"transpose the sequences, `x.transpose(1, 2)`, and give the layer `in_channels={channels}`",
        True,
        {"along": along, "beside": beside},
    )
