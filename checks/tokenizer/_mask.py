"""The mask of a batch against its padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from debugkit import Finding, fail, note, warn
from debugkit.probes.pad_trials import PadTrials
from debugkit.probes.token_ids import TokenIds
from debugkit.tokens.pad_trial import NOTICED, Effect

_MOST = 0.9


def mask_findings(ids: TokenIds, trials: PadTrials | None) -> Iterator[Finding]:
    """A mask that is missing, inverted, all ones, or of other places than the content."""
    if ids.pad is None or not (ids.padded.any() or ids.hidden.any()):
        return
    yield from _missing(ids, trials.missing if trials is not None else None)
    if ids.mask is not None:
        yield from _wrong(ids, trials)
        yield from _turned(ids, trials)


def _missing(ids: TokenIds, effect: Effect | None) -> Iterator[Finding]:
    padded = int(ids.padded.sum())
    if effect is None or effect.now <= NOTICED or not effect.matters:
        return
    reached = f"`{effect.by.partition('(')[0]}`" if "(" in effect.by else "the model"
    yield fail(
        f"{padded:,} of {len(ids.ids):,} rows are padded and no mask reaches {reached}: the outputs of their text "
        f"differ by {effect.now:.2g} standard deviations from those without padding, and by {effect.fixed:.1g} with "
        f"`{effect.by}`",
        where=ids.path,
        hint=f"pass `{ids.mask}` of the batch on to the model (`{effect.by}`)"
        if ids.mask is not None
        else f"pass the mask that the tokenizer returns on to the model (`{effect.by}`)"
        if ids.codec is not None
        else f"pass `{effect.by}` to the model: it is to mark where `{ids.path}` is not {ids.pad}",
        rows=padded,
        difference=effect.now,
    )


def _wrong(ids: TokenIds, trials: PadTrials | None) -> Iterator[Finding]:
    effect = trials.wrong if trials is not None else None
    uncovered, hidden = ids.uncovered > 0, ids.hidden > 0
    shown = uncovered & ids.padded
    kind = _kind(ids)
    if kind is None:
        return
    rows = int((shown | hidden).sum()) if kind != "ones" else int(shown.sum())
    first = int(np.flatnonzero(shown | hidden)[0])
    said = {
        "inverted": f"`{ids.mask}` is inverted: it leaves out the text and keeps the padding",
        "ones": f"`{ids.mask}` is 1 everywhere, on {int(ids.uncovered.sum()):,} places of padding too",
        "short": f"`{ids.mask}` leaves out {int(ids.hidden.sum()):,} tokens of text",
        "long": f"`{ids.mask}` keeps {int(ids.uncovered.sum()):,} places of padding",
    }[kind]
    said += f" ({rows:,} of {len(ids.ids):,} rows)"
    hint = (
        "pass on the mask that the tokenizer, or its `pad` method, returns"
        if ids.codec
        else (f"make the mask from the padded rows: `{ids.path} != {ids.pad}`")
    )
    where = ids.rows.name(int(ids.samples[first]), ids.mask or "")
    if effect is not None and effect.matters:
        yield fail(
            f"{said}: the outputs of the text differ by {effect.now:.2g} standard deviations from those without "
            "padding",
            where=where,
            hint=hint,
            rows=rows,
            difference=effect.now,
        )
    elif effect is not None and effect.now <= NOTICED:
        yield note(f"{said}, and the outputs of the text do not depend on it")
    elif ids.certain:
        yield warn(said, where=where, hint=hint, rows=rows)
    else:
        yield note(said)


def _turned(ids: TokenIds, trials: PadTrials | None) -> Iterator[Finding]:
    """A mask that marks the right places, with the other sign than the model takes it."""
    effect = trials.turned if trials is not None else None
    if effect is None or not effect.matters:
        return
    if effect.by:
        yield from _missing(ids, effect)
        return
    marks = "padding" if ids.inverted else "text"
    amount = f" by {effect.now:.2g} standard deviations" if effect.now < float("inf") else ""
    yield fail(
        f"`{ids.mask}` marks the {marks} and the model takes it inverted: the outputs of padded rows differ{amount} from "
        "those without padding, and do not with the mask the other way round",
        where=ids.mask,
        hint="torch's `key_padding_mask` is True at padding, an `attention_mask` is 1 at text: pass on `mask == 0`",
        difference=effect.now if amount else None,
    )


def _kind(ids: TokenIds) -> str | None:
    """What is wrong with the mask, if it is wrong in most rows."""
    padded = ids.padded
    outside = ids.widths - ids.lengths
    turned = (ids.uncovered == outside) & (ids.hidden == ids.lengths)
    if padded.any() and turned[padded].mean() >= _MOST:
        return "inverted"
    if ids.uncovered.any() and all(bool(row.all()) for row in ids.seen):
        return "ones"
    if ids.hidden.any() and (ids.hidden > 0).mean() >= _MOST:
        return "short"
    if padded.any() and (ids.uncovered[padded] > 0).mean() >= 1 - _MOST:
        return "long"
    return None
