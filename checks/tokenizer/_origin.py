"""Whether ids are from the tokenizer: those that it does not have, and those that do not come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from debugkit import Finding, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.decoded import Decoded, TokenRow

FEWEST_TOKENS = 32
_MOST_TOKENS = 4096
_SURELY_OWN = 0.8


def foreign(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Ids that the tokenizer does not have."""
    knows, size = decoded.codec.knows, decoded.codec.size
    found = [(row, index) for row in decoded.rows for index in row.ids if not knows(index)]
    if not found:
        strange = sorted(index for index in decoded.padding if not knows(index))
        if strange and decoded.vectors is not None and not 0 <= strange[0] < decoded.vectors:
            yield note(f"the padding is `{strange[0]}`, an id without a row: that is `vocabulary-size`'s")
        elif strange:
            yield warn(
                f"the padding is `{strange[0]}`, and the tokenizer has no such id: an embedding has no vector for it",
                hint="pad the inputs with `tokenizer.pad_token_id`; only labels are padded with `-100`",
            )
        return
    ids = [index for _, index in found]
    lowest, highest = min(ids), max(ids)
    if lowest < 0:
        which = f"negative, down to {lowest}"
        hint = "pad and mask the inputs with ids of the tokenizer; `-100` is for labels only"
    else:
        which = f"{lowest} to {highest}"
        hint = "pass the tokenizer that encoded the data, with the tokens that were added to it"
    said = f"{len(ids):,} of {decoded.tokens:,} token ids are {which}: the tokenizer has no such id"
    said += f", its last one is {size - 1}" if size else ""
    where = f"train[{found[0][0].sample}]"
    within = decoded.vectors is not None
    if decoded.media:
        yield note(f"{said}; they may stand for what comes with the text", where=where, foreign=len(ids))
    elif decoded.vectors is not None and not (lowest >= 0 and highest < decoded.vectors):
        yield note(
            f"{said}, and the embedding has {decoded.vectors:,} rows: that is `vocabulary-size`'s",
            where=where,
            foreign=len(ids),
        )
    elif within and are_own(decoded, decoded.rows, min_recovered):
        yield warn(f"{said}; the rest is this tokenizer's", where=where, hint=hint, foreign=len(ids))
    else:
        yield fail(said, where=where, hint=hint, foreign=len(ids))


def round_trip(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Decode the rows, encode the text again: are these the ids that the tokenizer makes?"""
    spans = _some_spans(decoded.rows, decoded)
    share, again = decoded.codec.recovered(spans)
    if share is None or share >= min_recovered or sum(map(len, spans)) < FEWEST_TOKENS:
        return
    own, _ = decoded.codec.recovered(again)
    if own is None or own < max(min_recovered, 2 * share):
        yield note("the tokenizer does not recover its own ids from the text that it decodes them to")
        return
    yield warn(
        f"{percent(share)} of {sum(map(len, spans)):,} tokens come back when the rows are decoded and encoded again: "
        "these ids were not made by this tokenizer",
        hint="pass the tokenizer that encoded the data, and let it be the model's own",
        recovered=share,
    )


def are_own(decoded: Decoded, rows: Sequence[TokenRow], min_recovered: float) -> bool:
    """Whether rows are beyond doubt made by this tokenizer."""
    spans = _some_spans(rows, decoded)
    share = decoded.codec.recovered(spans)[0] or 0.0
    return sum(map(len, spans)) >= FEWEST_TOKENS and share >= max(min_recovered, _SURELY_OWN)


def _some_spans(rows: Sequence[TokenRow], decoded: Decoded) -> list[tuple[int, ...]]:
    """Stretches of text from the first rows, up to a number of tokens that takes no time to decode."""
    spans: list[tuple[int, ...]] = []
    tokens = 0
    for row in rows:
        if tokens < _MOST_TOKENS:
            spans += (found := list(decoded.spans(row, intact=True)))
            tokens += sum(map(len, found))
    return spans
