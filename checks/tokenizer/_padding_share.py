"""How much of the batches is padding, and how much of that there need not be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from debugkit import Finding, note, warn
from debugkit.data.shares import percent
from debugkit.probes.token_ids import TokenIds

_WORTH = 1 / 3


def padding_share(ids: TokenIds, max_padding: float, min_saved: int, *, static: bool) -> Iterator[Finding]:
    """What the rows need if each batch is padded to its own longest row, against what they take.

    Args:
        ids: all rows.
        max_padding: share of all positions that may be padding, where padding each batch for itself saves a third.
        min_saved: positions per row that have to be saved to be worth a warning.
        static: whether the model is compiled for one shape.
    """
    given, content = int(ids.widths.sum()), int(ids.lengths.sum())
    needed = sum(_needed(ids, batch) for batch in np.unique(ids.batches))
    saved, share = 1 - needed / given, 1 - content / given
    rows = len(ids.ids)
    counts = f"{rows:,} rows, {given / rows:.3g} positions and {content / rows:.3g} tokens a row"
    worth_it = saved >= _WORTH * share and (given - needed) / rows >= min_saved
    if share > max_padding and worth_it and not static:
        yield warn(
            f"{percent(share)} of the batches is padding, and {percent(saved)} of the positions need not be there: "
            f"rows take {given / rows:,.4g} positions and the longest of a batch has {needed / rows:,.3g} tokens on "
            "average",
            where=ids.path,
            hint="pad in the collate function, each batch to its longest row (`DataCollatorWithPadding`, "
            "`padding=True`), not to a fixed length",
            padding=share,
            saved=saved,
        )
    elif not ids.padded.any():
        yield note(
            f"no padding in {rows:,} rows of {int(ids.widths.min()):,} to {int(ids.widths.max()):,} ids"
        )
    elif content < (1 - max_padding) * given:
        yield note(
            f"{percent(share)} of the batches is padding ({counts}); batches of rows of similar length "
            "would have less",
            padding=share,
            saved=saved,
        )
    else:
        side = {"left": " on the left", "right": " on the right"}.get(ids.side or "", " on both sides")
        yield note(
            f"{percent(share)} of the batches is padding,{side} ({counts})", padding=share, saved=saved
        )


def _needed(ids: TokenIds, batch: int) -> int:
    lengths = ids.lengths[ids.batches == batch]
    return int(lengths.max()) * len(lengths)
