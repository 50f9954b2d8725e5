"""Classes that have another number in the evaluation split than in training."""

from __future__ import annotations

import numpy as np

from debugkit import Finding, fail
from debugkit.data.shares import percent
from debugkit.probes.cheap_model import CheapModel

_FEWEST = 30
_WELL = 0.7
_RATHER = 0.4
_SHOWN = 3


def renumbered(model: CheapModel) -> Finding | None:
    """A fail, where the classes that the model sees in the evaluation split are those of its labels renumbered."""
    other, count = model.evaluation, len(model.classes)
    if other is None or model.predicted is None or len(other.codes) < max(_FEWEST, 8 * count):
        return None
    known = other.codes >= 0
    said, codes = model.predicted.argmax(1)[known], other.codes[known]
    table = np.zeros((count, count))
    np.add.at(table, (said, codes), 1)
    partner = table.argmax(1)
    if len(np.unique(partner)) < count or (partner == np.arange(count)).all():
        return None
    fitting = float(table[np.arange(count), partner].sum() / len(other.codes))
    as_given = float(np.trace(table) / len(other.codes))
    if fitting < _WELL * model.accuracy or fitting < as_given + _RATHER or model.accuracy < _WELL:
        return None
    moved = [place for place in range(count) if partner[place] != place]
    pairs = ", ".join(f"`{model.classes[p]}` is `{model.classes[partner[p]]}`" for p in moved[:_SHOWN])
    return fail(
        f"{len(moved)} classes have another number in the evaluation split: what training calls {pairs} there; a "
        f"linear model is right on {percent(as_given)} of it with the numbers as they are and on {percent(fitting)} "
        "with them exchanged",
        hint="number the classes once, from the training data or a fixed list, and use the same table for every split",
        as_given=as_given,
        exchanged=fitting,
    )
