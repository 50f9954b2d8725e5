"""Which labels a loss counts, concluded from the rows whose targets were read from it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

import torch

from debugkit.data.batch import tensors
from debugkit.probes.token_targets import TokenTargets
from debugkit.tokens.token_labels import Part

_AGREE = 0.98
_MOSTLY = 0.9
_FEWEST_PADS = 3


@dataclass(frozen=True)
class LabelRule:
    """Which labels count: all but the ignored ones, at the places of a mask where there is one.

    Attributes:
        ignored: labels that get no gradient.
        path: the place of the mask in the batch; ``""`` for none.
        late: how many positions before the label the mask has its value.
    """

    ignored: frozenset[int]
    path: str = ""
    late: int = 0

    @staticmethod
    def of(targets: TokenTargets, part: Part) -> LabelRule | None:
        """The rule that explains which positions of the traced rows have a gradient; ``None`` where none does."""
        given = part.labels[list(targets.rows)] if max(targets.rows) < len(part.labels) else None
        if given is None or len(given) != len(targets.targets):
            return None
        live = targets.targets >= 0
        width = min(given.shape[1], live.shape[1])
        for late in (0, 1):
            labels, seen, wanted = (
                given[:, late:width],
                live[:, : width - late],
                targets.targets[:, : width - late],
            )
            if not seen.any() or float((labels == wanted)[seen].float().mean()) < _AGREE:
                continue
            ignored = frozenset(_never(labels, seen))
            counts = ~torch.isin(labels, torch.tensor(sorted(ignored), dtype=torch.long))
            if float((counts == seen).float().mean()) >= _MOSTLY:
                return LabelRule(ignored)
            negative = labels < 0
            for path, mask in tensors(part.batch):
                if mask.shape != part.labels.shape or mask.is_complex():
                    continue
                chosen = mask.detach().cpu()[list(targets.rows)] != 0
                for place in (late, 0):
                    by_mask = chosen[:, place : place + labels.shape[1]] & ~negative
                    if by_mask.shape == seen.shape and float((by_mask == seen).float().mean()) >= _AGREE:
                        return LabelRule(frozenset(labels[negative].tolist()), path, late - place)
        return None


def _never(labels: torch.Tensor, seen: torch.Tensor) -> Iterator[int]:
    """Labels that never get a gradient: negative ones, and others that occur several times."""
    for value in set(labels.tolist() if labels.ndim == 1 else labels.flatten().tolist()):
        here = labels == value
        if not bool(seen[here].any()) and (value < 0 or int(here.sum()) >= _FEWEST_PADS):
            yield int(value)


def counted(part: Part, ignored: Set[int], rule: LabelRule | None) -> torch.Tensor:
    """Which labels count, ``[rows, width]``."""
    counts = ~torch.isin(part.labels, torch.tensor(sorted(ignored), dtype=torch.long))
    if rule is None or not rule.path:
        return counts
    mask = dict(tensors(part.batch)).get(rule.path)
    if mask is None or mask.shape != counts.shape:
        return counts
    chosen = mask.detach().cpu() != 0
    if rule.late:
        chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], dim=1)
    return counts & chosen
