"""How many labels are wrong, as far as a cheap model that is right elsewhere can tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from debugkit.data.ridge import one_hot
from debugkit.data.shares import lower_bound
from debugkit.probes.cheap_model import CheapModel

Array = np.ndarray[Any, Any]

_NEIGHBOURS = 10
_Z = 2.33
_FLAT = 0.4
_STRONG = 0.85
_GAIN = 0.25


@dataclass(frozen=True, eq=False)
class WrongLabels:
    """An estimate of the share of wrong labels.

    A hard task makes errors where the model is unsure; wrong labels contradict it just as often where it is sure.

    Attributes:
        share: how often the model, where it is surest, is contradicted by the label and agrees with the
            neighbours; the surest half of each class that it predicts.
        least: what the counts prove (99 %).
        elsewhere: its errors in the other half.
        gain: how far its accuracy is on the way from that of the largest class to 1.
        near: the same for the most common class among the neighbours.
        skill: its accuracy if that share of the labels is wrong at random.
        suspects: places of the contradicted samples, the surest first.
    """

    share: float
    least: float
    elsewhere: float
    gain: float
    near: float
    skill: float
    suspects: Array = field(repr=False)

    @property
    def trusted(self) -> bool:
        """Whether the model is good enough elsewhere, and its errors even enough, to blame the labels."""
        able = self.gain >= _GAIN and self.near >= _GAIN * self.gain and self.skill >= _STRONG
        return able and self.share >= _FLAT * self.elsewhere


def wrong_labels(model: CheapModel) -> WrongLabels:
    """Estimate the share of wrong labels among the training samples."""
    codes, told = model.train.codes, model.left_out
    n, count = told.shape
    said = told.argmax(1)
    certainty = told[np.arange(n), said]
    votes = one_hot(codes, count)[neighbours(model.train.features.matrix, _NEIGHBOURS)].mean(1)
    contradicted = (said != codes) & (votes[np.arange(n), said] > votes[np.arange(n), codes])
    sure = np.zeros(n, dtype=bool)
    for each in range(count):
        places = np.flatnonzero(said == each)
        order = np.argsort(-certainty[places], kind="stable")
        sure[places[order[: (len(places) + 1) // 2]]] = True
    share = float(contradicted[sure].mean())
    right = float((said == codes).mean())
    skill = (right - share / max(count - 1, 1)) / max(1 - share * count / max(count - 1, 1), 1e-6)
    suspects = np.flatnonzero(contradicted & sure)
    return WrongLabels(
        share=share,
        least=lower_bound(share, int(sure.sum()), _Z),
        elsewhere=float((said != codes)[~sure].mean()) if not sure.all() else 0.0,
        gain=(right - model.majority) / max(1 - model.majority, 1e-6),
        near=(float((votes.argmax(1) == codes).mean()) - model.majority) / max(1 - model.majority, 1e-6),
        skill=skill if share < 0.5 else 0.0,
        suspects=suspects[np.argsort(-certainty[suspects], kind="stable")],
    )


def neighbours(matrix: Array, count: int) -> Array:
    """``[n, count]`` places of the nearest other rows."""
    rows = matrix.astype(np.float32)
    squares = (rows**2).sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(distances, np.inf)
    count = min(count, len(rows) - 1)
    return np.argpartition(distances, count - 1, axis=1)[:, :count]
