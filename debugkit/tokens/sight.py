"""What scores see: which tokens to disturb in a second run, and what it says when scores move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from debugkit.tokens.alignment import Aligned

_NOTICED = 1e-5
_FAR_MORE = 3.0


@dataclass(frozen=True)
class Sight:
    """What scores see; see :class:`debugkit.probes.token_targets.TokenTargets`."""

    causal: bool | None = None
    reach: int | None = None
    answer: bool | None = None
    local: bool | None = None
    alone: bool | None = None


BLIND = Sight()


@dataclass(frozen=True, eq=False)
class Plan:
    """What to disturb: one token in the first row, a token and all after it in others, nothing in the last.

    Attributes:
        places: bool ``[rows, length]``.
        alone: the row with one disturbed token.
        asked: the position in that row that has to predict the disturbed token.
        starts: by row, the first disturbed place.
        control: the row that stays as it is, where there is one.
    """

    places: torch.Tensor
    alone: int
    asked: int
    starts: Mapping[int, int]
    control: int | None

    @staticmethod
    def of(aligned: Aligned) -> Plan | None:
        """A plan for the rows of a pass; ``None`` where no row has a target in its middle."""
        length, shift = aligned.ids.shape[1], aligned.shift or 0
        asked: dict[int, int] = {}
        for row, live in enumerate(aligned.targets >= 0):
            found = [t for t in live.nonzero().flatten().tolist() if 1 <= t + shift < length]
            if found:
                asked[row] = found[len(found) // 2]
        ranked = sorted(range(len(aligned.targets)), key=lambda row: -int((aligned.targets[row] >= 0).sum()))
        if not ranked or ranked[0] not in asked:
            return None
        control = ranked.pop() if len(ranked) > 2 else None
        places = torch.zeros_like(aligned.ids, dtype=torch.bool)
        starts = {row: asked[row] + shift for row in ranked if row in asked}
        alone = ranked[0]
        for row, start in starts.items():
            places[row, start : start + 1 if row == alone else None] = True
        return Plan(places, alone, asked[alone], starts, control)

    def read(self, change: torch.Tensor) -> Sight:
        """What the scores see, from how far they moved ``[rows, length]``."""
        moved = change > _NOTICED
        found = moved[self.alone].nonzero().flatten()
        if not len(found) or (self.control is not None and bool(moved[self.control].any())):
            return BLIND
        start = self.starts[self.alone]
        others = torch.cat([change[self.alone, :start], change[self.alone, start + 1 :]])
        return Sight(
            causal=not any(bool(moved[row, :first].any()) for row, first in self.starts.items()),
            reach=start - int(found[0]),
            answer=bool(moved[self.alone, self.asked]),
            local=bool(change[self.alone, start] > _FAR_MORE * others.median()) if len(others) else None,
            alone=found.tolist() == [start],
        )
