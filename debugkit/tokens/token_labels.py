"""Labels given token by token: beside which ids they stand, and what they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from debugkit.data.batch import input_ids, size, split, tensors
from debugkit.data.labels import as_tensor
from debugkit.tokens.alignment import NEXT, matched, shift_of

Task = Literal["next", "hidden", "tags", "written"]

_SAME = 0.95
_ONE_ID = 0.5
_RARELY = 0.01
_FEWEST_WORDS = 3
_MOST_TAGS = 200
_FEWEST_POSITIONS = 3


@dataclass(frozen=True, eq=False)
class Part:
    """The tokens and labels of one batch, on the CPU.

    Attributes:
        number: the number of the batch.
        first: the number of its first sample, in loader order.
        ids: ``[rows, length]``; ``None`` where the batch has no token ids.
        labels: ``[rows, width]`` whole numbers.
        batch: the batch itself.
    """

    number: int
    first: int
    ids: torch.Tensor | None
    labels: torch.Tensor
    batch: Any

    @property
    def beside(self) -> bool:
        """Whether there is one label for each token id."""
        return self.ids is not None and self.ids.shape == self.labels.shape


def parts_of(items: Iterable[Any]) -> Iterator[Part]:
    """The batches that have labels for each token."""
    first = 0
    for number, batch in enumerate(items):
        found = as_tensor(split(batch)[1])
        ids = _ids(batch, found)
        if found is not None and _is_whole(found):
            labels = found.long()
            if labels.ndim == 1 and ids is not None and labels.numel() == ids.numel() and len(ids) > 1:
                labels = labels.reshape(ids.shape)
            if labels.ndim == 2 and labels.shape[1] >= _FEWEST_POSITIONS:
                yield Part(number, first, ids, labels, batch)
        first += size(batch) or 1


def runs_at_end(ids: torch.Tensor, index: int) -> torch.Tensor:
    """How often an id stands at the end of each row, ``[rows]``."""
    same = (ids == index).flip(1).long()
    return same.cumprod(1).sum(1)


def task_of(
    parts: Sequence[Part], ignored: frozenset[int], shift: int | None, causal: bool | None
) -> tuple[Task, bool]:
    """What the labels are, and whether they stand one position to the left of their tokens.

    Args:
        parts: the batches.
        ignored: labels that do not count.
        shift: the distance at which the step's targets are tokens, where that was seen.
        causal: whether the model is causal, where that was seen.
    """
    if not all(part.beside for part in parts):
        return "written", False
    hits = {0: 0, NEXT: 0}
    compared = dict(hits)
    distances: Counter[int | None] = Counter()
    hidden: Counter[int] = Counter()
    words: Counter[int] = Counter()
    for part in parts:
        assert part.ids is not None
        counted = ~torch.isin(part.labels, torch.tensor(sorted(ignored), dtype=torch.long))
        wanted = torch.where(counted & (part.labels >= 0), part.labels, -1)
        matches = matched(part.ids, wanted)
        distances[shift_of(matches, wanted)] += 1
        for distance in hits:
            hits[distance] += matches[distance].hits
            compared[distance] += matches[distance].compared
        hidden.update(part.ids[counted & (part.ids != part.labels)].tolist())
        words.update(part.labels[counted].tolist())
    exact = [d for d in hits if compared[d] and hits[d] >= _SAME * compared[d]]
    found = distances.most_common(1)[0][0]
    if found in hits or exact:
        moved = found == NEXT if found in hits else exact == [NEXT]
        return ("hidden" if shift == 0 and causal is False else "next"), moved
    mask, count = hidden.most_common(1)[0] if hidden else (None, 0)
    alone = mask is not None and words[mask] <= _RARELY * words.total()
    if alone and count >= _ONE_ID * hidden.total() and len(words) >= _FEWEST_WORDS:
        return "hidden", False
    return ("tags" if len(words) <= _MOST_TAGS else "written"), False


def _ids(batch: Any, labels: torch.Tensor | None) -> torch.Tensor | None:
    """The token ids of a batch; under another name, the first matrix of whole numbers like the labels."""
    ids = input_ids(batch)
    if ids is None and labels is not None:
        matrices = (tensor for _, tensor in tensors(split(batch)[0]) if tensor.shape == labels.shape)
        ids = next(
            (m for m in matrices if m.ndim == 2 and _is_whole(m) and m.numel() and int(m.max()) > 1), None
        )
    return None if ids is None else ids.detach().cpu().long()


def _is_whole(labels: torch.Tensor) -> bool:
    return not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
