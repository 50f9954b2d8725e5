"""Which token a position is trained to predict: targets read from a gradient, held against token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SHIFTS = (-1, 0, 1, 2)
NEXT = 1

_SAME = 0.9
_APART = 0.2
_FEWEST = 8
_FEWEST_TOKENS = 3
_MOST_DROPPED = 2
_ONE_TARGET = 0.7
_BALANCE = 0.1
_CROSS_ENTROPY = 0.9


@dataclass(frozen=True)
class Match:
    """How often a position's target is the token at a fixed distance from it.

    Attributes:
        hits: how often it is.
        compared: at how many positions both are there.
    """

    hits: int
    compared: int

    @property
    def share(self) -> float:
        """The share of hits; 0 where nothing was compared."""
        return self.hits / self.compared if self.compared else 0.0


@dataclass(frozen=True, eq=False)
class Aligned:
    """Targets beside the ids that they belong to, rows first.

    Attributes:
        number: which of the given ids.
        turned: whether those were given as ``[length, rows]``.
        swapped: whether the targets have to be transposed to have rows first.
        ids: ``[rows, length]``.
        targets: ``[rows, length]``, -1 where there is none.
        matches: by distance, for :data:`SHIFTS`.
        shift: the one distance at which targets are tokens; ``None`` where there is none, or more than one.
    """

    number: int
    turned: bool
    swapped: bool
    ids: torch.Tensor
    targets: torch.Tensor
    matches: Mapping[int, Match]
    shift: int | None

    def rows_first(self, positions: torch.Tensor) -> torch.Tensor:
        """Values for each position, in the order of the targets, as ``[rows, length]``; 0 where there are no scores."""
        missing = self.ids.shape[1] - positions.shape[-1]
        if positions.ndim == 2 and len(positions) == len(self.ids) and 0 < missing <= _MOST_DROPPED:
            positions = F.pad(positions, (0, missing))
        return _rows_first(positions, self.ids.shape, self.swapped)


def class_targets(gradient: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """The class that each position has to predict, from the gradient of cross-entropy.

    Args:
        gradient: of the loss with respect to logits or log-probabilities, with one dimension of classes.

    Returns:
        The targets in the shape of the positions (-1 where there is no gradient), and the dimension of the
        classes; ``None`` where this is no gradient of cross-entropy.
    """
    best: tuple[float, torch.Tensor, int] | None = None
    for dim in dict.fromkeys((gradient.ndim - 1, 1)):
        if not 0 < dim < gradient.ndim or gradient.shape[dim] < 2:
            continue
        lowest, which = gradient.min(dim)
        down = gradient.clamp(max=0).sum(dim).float()
        total = gradient.sum(dim).float()
        live = lowest < 0
        single = lowest.float() <= _ONE_TARGET * down
        balanced = (total.abs() <= _BALANCE * down.abs()) | (gradient <= 0).all(dim)
        fits = live & single & balanced
        share = float(fits.sum() / live.sum()) if live.any() else 0.0
        if share >= _CROSS_ENTROPY and (best is None or share > best[0]):
            best = share, torch.where(fits, which, -1).cpu(), dim
    return None if best is None else best[1:]


def align(
    targets: torch.Tensor, candidates: Sequence[torch.Tensor], preferred: torch.Tensor | None
) -> Aligned | None:
    """Find the ids that targets belong to, by rows and by columns.

    Ids whose next token is the target come first: a decoder that writes what its encoder reads has both. Where all ids
    are longer, as in a model that leaves out its last scores, the last positions have no target.

    Args:
        targets: ``[rows, length]``, ``[length, rows]`` or flat.
        candidates: matrices of ids.
        preferred: ids to take where no candidate explains the targets.

    Returns:
        ``None`` where no candidate has the targets' shape.
    """
    if not any(ids.numel() == targets.numel() for ids in candidates):
        targets = _filled_up(targets, candidates)
    found: list[tuple[tuple[bool, float, bool, bool], Aligned]] = []
    for number, ids in enumerate(candidates):
        for turned, swapped in _orientations(ids, targets):
            rows = ids.T if turned else ids
            wanted = _rows_first(targets, rows.shape, swapped)
            matches = matched(rows, wanted)
            shift = shift_of(matches, wanted)
            best = max(match.share for match in matches.values()) if shift is not None else 0.0
            known = preferred is not None and rows.shape == preferred.shape and torch.equal(rows, preferred)
            rank = (shift == NEXT, best, known, not turned and not _counts_up(rows))
            found.append((rank, Aligned(number, turned, swapped, rows, wanted, matches, shift)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def matched(ids: torch.Tensor, targets: torch.Tensor) -> dict[int, Match]:
    """Hold targets against ids, both ``[rows, length]``, at every distance."""
    length = ids.shape[1]
    matches = {}
    for shift in SHIFTS:
        here = slice(max(0, -shift), max(0, length - max(0, shift)))
        there = slice(max(0, shift), max(0, length - max(0, -shift)))
        live = targets[:, here] >= 0
        same = (targets[:, here] == ids[:, there]) & live
        matches[shift] = Match(int(same.sum()), int(live.sum()))
    return matches


def shift_of(matches: Mapping[int, Match], targets: torch.Tensor) -> int | None:
    """The distance at which nearly every target is a token; ``None`` where none is, or more than one could be."""
    shift = max(matches, key=lambda s: matches[s].share)
    match = matches[shift]
    if match.share < _SAME or match.compared < _FEWEST:
        return None
    if len(set(targets[targets >= 0].tolist())) < _FEWEST_TOKENS:
        return None
    others = (matches[other].share for other in matches if other != shift)
    return shift if all(share <= match.share - _APART for share in others) else None


def _filled_up(targets: torch.Tensor, candidates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Targets with -1 in the last one or two places, where ids have that many more."""
    for ids in candidates:
        if ids.ndim == targets.ndim == 2 and len(ids) == len(targets):
            missing = ids.shape[1] - targets.shape[1]
            if 0 < missing <= _MOST_DROPPED:
                return F.pad(targets, (0, missing), value=-1)
    return targets


def _orientations(ids: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[bool, bool]]:
    """``(turned, swapped)``: in which ways ids and targets have to be transposed to fit, rows first."""
    if ids.ndim != 2 or ids.numel() != targets.numel() or not ids.numel():
        return
    flat, wide = targets.ndim == 1, min(ids.shape) > 1
    if flat or not wide or targets.shape == ids.shape:
        yield False, False
        if wide:
            yield True, True
    if wide and (flat or (targets.shape != ids.shape and targets.T.shape == ids.shape)):
        yield False, True
        yield True, False


def _rows_first(positions: torch.Tensor, shape: tuple[int, ...], swapped: bool) -> torch.Tensor:
    if positions.ndim == 1 or 1 in shape:
        positions = positions.reshape(shape[::-1] if swapped else shape)
    return positions.T if swapped else positions


def _counts_up(ids: torch.Tensor) -> bool:
    """Whether every row is a run of consecutive numbers, as positions are."""
    return ids.shape[1] > 1 and bool((ids.diff(dim=1) == 1).all())
