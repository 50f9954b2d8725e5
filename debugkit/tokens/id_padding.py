"""Where padding stands in rows of token ids, and which id it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from debugkit.tokens.codec import Codec

Array = np.ndarray[Any, Any]

_FEWEST_ROWS = 3
_PADDED = 0.05
_RARE = 0.02


def places_between(width: int, start: int, stop: int) -> Array:
    """``[width]`` bool: the places from ``start`` up to ``stop``."""
    places = np.arange(width)
    found: Array = (places >= start) & (places < stop)
    return found


def padding_of(ids: Sequence[Array], masks: Sequence[Array], codec: Codec | None) -> tuple[int | None, bool]:
    """The id of padding, and whether it stands for nothing else.

    Args:
        ids: the rows, each ``[length]``.
        masks: beside them, zeros and ones; empty without a mask.
        codec: the tokenizer.

    Returns:
        The tokenizer's own id where it stands at the edge of some row; else one that alone is left out by the mask,
        or stands in runs of several lengths at the edges and nowhere else. ``None`` where no id does.
    """
    own = codec.roles.get("pad") if codec is not None else None
    shared = set()
    if codec is not None:
        shared = {i for role, i in codec.roles.items() if role != "pad"} | codec.habits().special
    if own is not None and _runs(ids, own) >= 1:
        return own, own not in shared and _inside(ids, own) <= _RARE
    for value in dict.fromkeys([*_masked_out(ids, masks), *_edges(ids)]):
        if value != own and _runs(ids, value) >= 2 and _inside(ids, value) <= _RARE:
            return value, value not in shared
    return None, False


def content_of(ids: Sequence[Array], pad: int | None) -> tuple[Array, Array]:
    """Where the content of each row begins and ends: ``[rows]`` int each."""
    starts, stops = np.zeros(len(ids), int), np.array([len(row) for row in ids], int)
    if pad is None:
        return starts, stops
    for number, row in enumerate(ids):
        places = np.flatnonzero(row != pad)
        starts[number], stops[number] = (places[0], places[-1] + 1) if len(places) else (0, 0)
    return starts, stops


def by_mask(starts: Array, stops: Array, seen: Sequence[Array]) -> tuple[Array, Array]:
    """What a mask counts as content, where that is one stretch in every row."""
    spans = [_stretch(mask) for mask in seen]
    if not spans or any(span is None for span in spans):
        return starts, stops
    found = np.array([span for span in spans if span is not None], int)
    return found[:, 0], found[:, 1]


def with_one_pad(
    ids: Sequence[Array],
    starts: Array,
    stops: Array,
    seen: Sequence[Array],
) -> tuple[Array, Array]:
    """The content with one id of the padding at each end, or as the mask has it where that is about the same."""
    widths = np.array([len(row) for row in ids])
    low, high = np.maximum(starts - 1, 0), np.minimum(stops + 1, widths)
    for row, mask in enumerate(seen):
        if (span := _stretch(mask)) is None:
            continue
        first, last = span
        if low[row] <= first <= starts[row] and stops[row] <= last <= high[row]:
            low[row], high[row] = first, last
    return low, high


def _masked_out(ids: Sequence[Array], masks: Sequence[Array]) -> Iterator[int]:
    """The one id at all places that a mask leaves out, or at all that it does not."""
    for kept in (0, 1):
        found = {int(i) for row, mask in zip(ids, masks, strict=False) for i in np.unique(row[mask == kept])}
        if len(found) == 1:
            yield found.pop()


def _edges(ids: Sequence[Array]) -> Iterator[int]:
    """Ids that stand at the end, or at the beginning, of several rows at least twice in a row."""
    for edge, next_to_it in ((-1, -2), (0, 1)):
        twice = Counter(
            int(row[edge]) for row in ids if len(row) > 1 and row[edge] == row[next_to_it]
        ).most_common(1)
        if twice and twice[0][1] >= max(_FEWEST_ROWS, _PADDED * len(ids)):
            yield twice[0][0]


def _stretch(mask: Array) -> tuple[int, int] | None:
    places = np.flatnonzero(mask)
    whole = len(places) > 0 and places[-1] - places[0] + 1 == len(places)
    return (int(places[0]), int(places[-1]) + 1) if whole else None


def _runs(ids: Sequence[Array], value: int) -> int:
    """How many different lengths the runs of an id at the edges of rows have."""
    starts, stops = content_of(ids, value)
    runs = starts + np.array([len(row) for row in ids]) - stops
    lengths = Counter(runs[runs > 0].tolist())
    return len(lengths)


def _inside(ids: Sequence[Array], value: int) -> float:
    """In which share of the rows an id stands within the content; masked language models put in random ids."""
    starts, stops = content_of(ids, value)
    inside = sum(bool((row[a:b] == value).any()) for row, a, b in zip(ids, starts, stops, strict=True))
    return inside / max(len(ids), 1)
