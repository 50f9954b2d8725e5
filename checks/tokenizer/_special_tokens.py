"""Special tokens and token types: those that the tokenizer adds, held against those in the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from debugkit import Finding, fail, note, warn
from debugkit.probes.decoded import Decoded, TokenRow, shorter, takes

from ._ends import FEW

_FEWEST_ROWS = 2


def missing(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that the tokenizer adds and no row has."""
    pieces = not decoded.varied and not decoded.sequence_labels
    if pieces or len(decoded.rows) < _FEWEST_ROWS:
        return
    prefix, suffix = decoded.habits.prefix, decoded.habits.suffix
    added = decoded.codec.added
    lost, most = [], 0
    judged = prefix and not decoded.is_padded_with(prefix)
    if judged and not any(row.ids[0] in added or _holds(row, prefix) for row in decoded.rows):
        lost.append(f"{decoded.codec.quote(prefix)} before")
    whole = shorter(decoded.rows)
    judged = suffix and len(whole) >= _FEWEST_ROWS and not decoded.is_padded_with(suffix)
    closed = sum(row.ids[-1] in added or _holds(row, suffix) for row in whole)
    if judged and closed <= FEW * len(whole):
        lost.append(f"{decoded.codec.quote(suffix)} after")
        most = closed
    if not lost:
        return
    share = f"{most or 'none'} of {len(decoded.rows)} rows {'have' if most > 1 else 'has'} it"
    said = f"the tokenizer puts {' and '.join(lost)} a text, and {share}"
    hint = "encode with `add_special_tokens=True`, which is the default"
    if decoded.trained and not most:
        yield fail(
            f"{said}: the pretrained model never saw text like that", hint=hint, rows=len(decoded.rows)
        )
    elif decoded.sequence_labels:
        yield warn(f"{said}: what the model pools is an arbitrary token", hint=hint, rows=len(decoded.rows))
    else:
        yield note(said, rows=len(decoded.rows))


def doubled(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that were added twice."""
    twice = {**_twice_at_start(decoded), **_twice_at_end(decoded)}
    if len(decoded.rows) < _FEWEST_ROWS or not twice:
        return
    most = max(map(len, twice.values()))
    said = " and ".join(place for place, rows in twice.items() if len(rows) == most)
    first = min(row.sample for rows in twice.values() for row in rows)
    everywhere = most == len(decoded.rows)
    make = fail if everywhere else warn
    yield make(
        f"{most} of {len(decoded.rows)} rows {said} twice: the text holds it and the tokenizer adds it again",
        where=None if everywhere else f"train[{first}]",
        hint="encode rendered or marked text with `add_special_tokens=False`",
        rows=most,
    )


def _twice_at_start(decoded: Decoded) -> dict[str, list[TokenRow]]:
    for mark in _marks(decoded, decoded.habits.prefix, ("bos", "cls"), ("pad", "eos", "sep")):
        rows = [row for row in decoded.rows if row.ids[: 2 * len(mark)] == 2 * mark]
        if rows and (decoded.exact or not decoded.is_padded_with(mark)):
            return {f"begin with {decoded.codec.quote(mark)}": rows}
    return {}


def _twice_at_end(decoded: Decoded) -> dict[str, list[TokenRow]]:
    for mark in _marks(decoded, decoded.habits.suffix, ("eos", "sep"), ("bos", "cls")):
        rows = [
            row for row in decoded.rows if row.ids[-2 * len(mark) :] == 2 * mark and not any(row.types or ())
        ]
        padding = any(row.ids[-3 * len(mark) :] == 3 * mark for row in rows)
        empty_second = len(rows) < len(decoded.rows) and any(
            _segment_count(row, decoded) > 1 for row in decoded.rows
        )
        if rows and decoded.exact and not padding and not empty_second:
            return {f"end with {decoded.codec.quote(mark)}": rows}
    return {}


def _marks(
    decoded: Decoded, learned: tuple[int, ...], own: Sequence[str], other: Sequence[str]
) -> list[tuple[int, ...]]:
    """What the tokenizer adds at one end of a text, and the special tokens that can only mean that end."""
    roles = decoded.codec.roles
    shared = {roles.get(role) for role in other}
    alone = [(roles[role],) for role in own if role in roles and roles[role] not in shared]
    return [mark for mark in dict.fromkeys([learned, *alone]) if mark]


def segments(decoded: Decoded, model: torch.nn.Module) -> Iterator[Finding]:
    """Pairs of texts without the token types that tell them apart."""
    if not decoded.habits.pair_types or not takes(model.forward, "token_type_ids"):
        return
    pairs = sum(_segment_count(row, decoded) == 2 for row in decoded.rows)
    if pairs < _FEWEST_ROWS or pairs < 0.9 * len(decoded.rows):
        return
    absent = all(row.types is None for row in decoded.rows)
    if not absent and any(any(row.types or ()) for row in decoded.rows):
        return
    state = "the batch has no `token_type_ids`" if absent else "all `token_type_ids` are 0"
    make = fail if absent and decoded.trained and pairs == len(decoded.rows) else warn
    yield make(
        f"{pairs} of {len(decoded.rows)} rows hold two texts and {state}: the model reads both as one text",
        hint="encode pairs as `tokenizer(first, second)` and pass on the `token_type_ids` that it returns",
        rows=pairs,
    )


def _segment_count(row: TokenRow, decoded: Decoded) -> int:
    """How many texts a row holds by the tokenizer's own layout for pairs; 0 where it has another layout."""
    prefix, middle, suffix = decoded.habits.prefix, decoded.habits.middle, decoded.habits.suffix
    if not middle or not suffix or row.ids[: len(prefix)] != prefix or row.ids[-len(suffix) :] != suffix:
        return 0
    inner = row.ids[len(prefix) : -len(suffix)]
    cuts = [at for at in range(len(inner)) if inner[at : at + len(middle)] == middle]
    if cuts and (cuts[0] == 0 or cuts[-1] + len(middle) == len(inner)):
        return 0
    return len(cuts) + 1


def _holds(row: TokenRow, marks: tuple[int, ...]) -> bool:
    return not set(marks).isdisjoint(row.ids)
