"""Rows whose answer was cut off: no token with a label is left, and they are the longest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from debugkit import Finding, fail, note, warn
from debugkit.data.labels import IGNORED
from debugkit.data.shares import percent
from debugkit.probes.samples import Samples
from debugkit.probes.token_ids import TokenIds

_FEWEST = 2
_RARELY = 0.01
_MOSTLY = 0.9


def cut_answers(ids: TokenIds, samples: Samples, max_cut: float) -> Iterator[Finding]:
    """Rows of the greatest length without a label that counts, where shorter ones have some."""
    columns = [
        column
        for column in samples.rows.labels
        if column.dtype in (torch.int64, torch.int32)
        and len(column.values) == len(ids.ids)
        and all(
            len(value) == len(row) for value, row in zip(column.values, ids.ids, strict=True) if value.ndim
        )
        and all(value.ndim == 1 for value in column.values)
    ]
    if len(columns) != 1:
        return
    counted = np.array([int((value != IGNORED).sum()) for value in columns[0].values], int)
    longest = int(ids.lengths.max(initial=0))
    without = (counted == 0) & (ids.lengths > 0)
    full = without & (ids.lengths == longest)
    cut, rows = int(full.sum()), len(ids.ids)
    if cut < _FEWEST or cut < _MOSTLY * int(without.sum()) or not (counted > 0).any():
        return
    make = fail if cut > max_cut * rows else warn if cut > _RARELY * rows else note
    yield make(
        f"{cut:,} of {rows:,} rows ({percent(cut / rows)}) have {longest:,} tokens, the most of all, and no label is "
        "left in them: the answer was cut off",
        where=ids.name(int(np.flatnonzero(full)[0])),
        hint="raise `max_length`, cut the prompt instead of the answer (`truncation_side`), or leave such rows out",
        rows=cut,
        length=longest,
    )
