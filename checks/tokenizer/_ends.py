"""The end of texts that a model learns to write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from debugkit import Finding, fail, warn
from debugkit.probes.decoded import Decoded, TokenRow, shorter

from ._origin import are_own

FEW = 0.1


def endless(decoded: Decoded) -> Iterator[Finding]:
    """Texts to generate that never end."""
    eos = decoded.codec.roles.get("eos")
    suffix_judged = decoded.habits.suffix and not decoded.is_padded_with(decoded.habits.suffix)
    if eos is None or not decoded.next_token or not decoded.varied or suffix_judged:
        return
    if eos == decoded.codec.roles.get("pad") and not _ends_are_seen(decoded):
        return
    closed, judged = _closed(decoded.rows, decoded)
    if not judged or closed > FEW * judged:
        return
    make = fail if decoded.trained and not closed else warn
    yield make(
        f"{closed or 'none'} of {judged} rows {_end(closed)} with {decoded.codec.quote((eos,))}: the model never learns to "
        "stop",
        hint="append `tokenizer.eos_token` to each text before encoding it",
        rows=judged - closed,
    )


def endless_targets(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Texts for a decoder to write that never end."""
    rows, eos = decoded.targets, decoded.codec.roles.get("eos")
    mark = decoded.habits.suffix or (() if eos is None else (eos,))
    if not mark or decoded.is_padded_with(mark) or len(shorter(rows)) <= len(rows) / 4:
        return
    closed, judged = _closed(rows, decoded)
    if not judged or closed > FEW * judged:
        return
    if not are_own(decoded, rows, min_recovered):
        return
    make = fail if decoded.trained and not closed else warn
    yield make(
        f"{closed or 'none'} of {judged} rows of labels {_end(closed)} with {decoded.codec.quote(mark)}: the model never "
        "learns to stop",
        hint="encode the labels with `tokenizer(text_target=...)`, which adds it"
        if decoded.habits.suffix
        else "append `tokenizer.eos_token` to each target before encoding it",
        rows=judged - closed,
    )


def _closed(rows: Sequence[TokenRow], decoded: Decoded) -> tuple[int, int]:
    """How many rows come to an end, and of how many: those that hold text and are shorter than the longest.

    A row has an end where its last token, white space aside, is a special or an added one, and where an end of
    text stands inside, as between the turns of a conversation.
    """
    codec, eos = decoded.codec, decoded.codec.roles.get("eos")
    closed = judged = 0
    for row in shorter(rows):
        ids = list(row.ids)
        while ids and codec.is_blank(ids[-1]):
            ids.pop()
        start = next((place for place, index in enumerate(ids) if index not in codec.added), None)
        if start is not None:
            judged += 1
            closed += ids[-1] in codec.added or eos in ids[start:]
    return closed, judged


def _end(rows: int) -> str:
    return "end" if rows > 1 else "ends"


def _ends_are_seen(decoded: Decoded) -> bool:
    """Whether an end of text equal to the padding would have stayed visible.

    A mask made by comparing ids with the padding hides the end too, but then the longest row of a batch that is
    padded to its longest row seems shorter than the batch.
    """
    widths: dict[int, list[int]] = {}
    for row in decoded.rows:
        widths.setdefault(row.width, []).append(len(row.ids))
    return len(widths) > 1 and all(max(lengths) == width for width, lengths in widths.items())
