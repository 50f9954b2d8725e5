"""Token ids that are not what the model's tokenizer makes of the text."""

from __future__ import annotations

import inspect
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.decoded import Decoded, TokenRow

_FEWEST_ROWS = 2
_FEWEST_TOKENS = 32
_MOST_TOKENS = 4096


@check
def tokenizer_output(
    decoded: Decoded,
    target: Target,
    *,
    max_unknown: Annotated[
        float, Field(gt=0, lt=1, description="share of unknown tokens above which the check warns")
    ] = 0.01,
    mostly_unknown: Annotated[
        float, Field(gt=0, le=1, description="share of unknown tokens from which the check fails")
    ] = 0.5,
    min_recovered: Annotated[
        float, Field(ge=0, lt=1, description="share of tokens that decoding and encoding again must recover")
    ] = 0.5,
    max_lost: Annotated[
        float,
        Field(
            gt=0, lt=1, description="share of a text's letters and digits that may be missing in its tokens"
        ),
    ] = 0.05,
) -> Iterator[Finding]:
    """Token ids that are not what the model's tokenizer makes of the text.

    The tokenizer encodes a piece of text to show what it adds around it. The rows of the first batches, without
    their padding, are held against that: special tokens missing or doubled, no end of text, segments without
    token types, unknown tokens, and ids that decode to a text whose own ids are different.

    ## Why is this bad?
    A pretrained model has learned with these tokens. Without `[CLS]` a classifier pools whatever word comes first;
    without a beginning-of-text token some models lose most of their quality; with two of them the rows look like
    nothing seen before. A generator that never sees an end of text does not stop. An unknown token is a word that
    the model can't read.

    ## What to do
    Let the tokenizer add its tokens (`add_special_tokens=True`) and do it once: a text that a chat template has
    rendered already begins with them, so encode it with `add_special_tokens=False`. Pass on all that the tokenizer
    returns, `token_type_ids` included. Load the tokenizer from the folder of the model.

    ## Known limits
    Rows of one length without padding are taken for pieces of longer texts, where special tokens stand only at the
    seams. A tokenizer of the same family with another vocabulary can decode to nonsense that encodes to the same
    ids; `tokenizer-match` asks the model. Where the padding token also ends a text and no mask tells them apart,
    the ends of rows are not judged.

    ## References
    - https://huggingface.co/docs/transformers/chat_templating
    - https://github.com/huggingface/transformers/issues/22794
    """
    findings = [
        *_missing(decoded),
        *_doubled(decoded),
        *_endless(decoded),
        *_segments(decoded, target.model),
        *_unknown(decoded, max_unknown, mostly_unknown),
    ]
    if not findings or all(finding.level == "note" for finding in findings):
        findings += [*_round_trip(decoded, min_recovered), *_lossy(decoded, max_lost)]
    yield from findings
    rows, tokens = len(decoded.rows), decoded.tokens
    yield note(
        f"{rows} rows, {tokens / rows:.3g} tokens a row, {_percent(_unknown_share(decoded))} unknown; the first is "
        f'"{excerpt(decoded.codec.decode(decoded.rows[0].ids) or "")}"',
        rows=rows,
        tokens=tokens,
    )


def _missing(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that the tokenizer adds and no row has."""
    if _is_packed(decoded) or len(decoded.rows) < _FEWEST_ROWS:
        return
    prefix, suffix = decoded.habits.prefix, decoded.habits.suffix
    added = decoded.codec.added
    lost = []
    if prefix and not any(row.ids[0] in added or _holds(row, prefix) for row in decoded.rows):
        lost.append(f"{_tokens(decoded, prefix)} before")
    whole = [row for row in decoded.rows if len(row.ids) < decoded.longest]
    if len(whole) >= _FEWEST_ROWS and suffix and decoded.exact and not _pad_in(decoded, suffix):
        if not any(row.ids[-1] in added or _holds(row, suffix) for row in whole):
            lost.append(f"{_tokens(decoded, suffix)} after")
    if not lost:
        return
    said = f"the tokenizer puts {' and '.join(lost)} a text, and none of {len(decoded.rows)} rows has it"
    hint = "encode with `add_special_tokens=True`, which is the default"
    if decoded.trained:
        yield fail(
            f"{said}: the pretrained model never saw text like that", hint=hint, rows=len(decoded.rows)
        )
    elif decoded.sequence_labels:
        yield warn(f"{said}: what the model pools is an arbitrary token", hint=hint, rows=len(decoded.rows))
    else:
        yield note(said, rows=len(decoded.rows))


def _doubled(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that were added twice."""
    roles, habits, rows = decoded.codec.roles, decoded.habits, decoded.rows
    if len(rows) < _FEWEST_ROWS:
        return
    shared = {roles.get("pad"), roles.get("eos"), roles.get("sep")}
    starts = [habits.prefix, *((roles[r],) for r in ("bos", "cls") if r in roles and roles[r] not in shared)]
    for mark in dict.fromkeys(start for start in starts if start):
        if _pad_in(decoded, mark) and not decoded.exact:
            continue
        twice = [row for row in rows if row.ids[: 2 * len(mark)] == 2 * mark]
        yield from _twice(decoded, twice, mark, "begin")
        if twice:
            break
    shared = {roles.get("bos"), roles.get("cls")}
    ends = [habits.suffix, *((roles[r],) for r in ("eos", "sep") if r in roles and roles[r] not in shared)]
    for mark in dict.fromkeys(end for end in ends if end):
        if not decoded.exact or any(row.ids[-3 * len(mark) :] == 3 * mark for row in rows):
            continue
        twice = [row for row in rows if row.ids[-2 * len(mark) :] == 2 * mark and not any(row.types or ())]
        if len(twice) < len(rows) and any(_segment_count(row, decoded) > 1 for row in rows):
            continue
        yield from _twice(decoded, twice, mark, "end")
        if twice:
            break


def _twice(
    decoded: Decoded, twice: Sequence[TokenRow], mark: tuple[int, ...], verb: str
) -> Iterator[Finding]:
    if not twice:
        return
    everywhere = len(twice) == len(decoded.rows)
    make = fail if everywhere else warn
    yield make(
        f"{len(twice)} of {len(decoded.rows)} rows {verb} with {_tokens(decoded, mark)} twice: the text holds it "
        "and the tokenizer adds it again",
        where=None if everywhere else f"train[{twice[0].sample}]",
        hint="encode rendered or marked text with `add_special_tokens=False`",
        rows=len(twice),
    )


def _endless(decoded: Decoded) -> Iterator[Finding]:
    """Texts to generate that never end."""
    eos = decoded.codec.roles.get("eos")
    suffix_judged = decoded.habits.suffix and not _pad_in(decoded, decoded.habits.suffix)
    if eos is None or not decoded.next_token or not decoded.padded or suffix_judged:
        return
    whole = [row for row in decoded.rows if len(row.ids) < decoded.longest]
    if len(whole) < _FEWEST_ROWS or any(row.ids[-1] in decoded.codec.added for row in decoded.rows):
        return
    if eos == decoded.codec.roles.get("pad") and not _ends_are_seen(decoded):
        return
    make = fail if decoded.trained else warn
    yield make(
        f"none of {len(decoded.rows)} rows ends with {_tokens(decoded, (eos,))}: the model never learns to stop",
        hint="append `tokenizer.eos_token` to each text before encoding it",
        rows=len(decoded.rows),
    )


def _ends_are_seen(decoded: Decoded) -> bool:
    """Whether an end of text equal to the padding would have stayed visible.

    A mask made by comparing ids with the padding hides the end too, but then the longest row of a batch that is
    padded to its longest row seems shorter than the batch.
    """
    widths: dict[int, list[int]] = {}
    for row in decoded.rows:
        widths.setdefault(row.width, []).append(len(row.ids))
    return len(widths) > 1 and all(max(lengths) == width for width, lengths in widths.items())


def _segments(decoded: Decoded, model: torch.nn.Module) -> Iterator[Finding]:
    """Pairs of texts without the token types that tell them apart."""
    if not decoded.habits.pair_types or not _takes(model, "token_type_ids"):
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


def _unknown(decoded: Decoded, max_unknown: float, mostly_unknown: float) -> Iterator[Finding]:
    share, count = _unknown_share(decoded), len(_words(decoded))
    if not count or share <= max_unknown:
        return
    name = _tokens(decoded, (decoded.codec.roles["unk"],))
    said = f"{_percent(share)} of {count:,} tokens are {name}"
    if share >= mostly_unknown:
        yield fail(
            f"{said}: the model can't read the text",
            hint="load the tokenizer from the model's folder and look at `len(tokenizer)`; transformers 5 takes "
            "`vocab=`, and an unknown keyword such as `vocab_file=` leaves the vocabulary empty",
            unknown=share,
        )
    elif _lower_bound(share, count) > max_unknown:
        yield warn(
            f"{said}, more than {_percent(max_unknown)}: these words are the same to the model",
            where=f"train[{max(decoded.rows, key=lambda row: _unknowns(row, decoded)).sample}]",
            hint="normalise the text as the tokenizer expects it (case, accents, script), or use a tokenizer with "
            "subwords",
            unknown=share,
        )


def _round_trip(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Decode the rows, encode the text again: are these the ids that the tokenizer makes?"""
    recovered = compared = 0
    for row in decoded.rows:
        for span in decoded.spans(row):
            text = decoded.codec.decode(span)
            again = decoded.codec.encode(text) if text is not None else None
            if again is None:
                return
            recovered += sum((Counter(span) & Counter(again)).values())
            compared += len(span)
        if compared > _MOST_TOKENS:
            break
    if compared >= _FEWEST_TOKENS and recovered < min_recovered * compared:
        yield warn(
            f"{_percent(recovered / compared)} of {compared:,} tokens come back when the rows are decoded and encoded "
            "again: these ids were not made by this tokenizer",
            hint="pass the tokenizer that encoded the data, and let it be the model's own",
            recovered=recovered / compared,
        )


def _lossy(decoded: Decoded, max_lost: float) -> Iterator[Finding]:
    """Compare with the text where the batch holds it: which letters and digits are gone?"""
    lost = total = 0
    for row in decoded.rows:
        if row.text is None or len(row.ids) == decoded.longest:
            continue
        kept = "".join(decoded.codec.decode(span) or "" for span in decoded.spans(row))
        before, after = _letters(row.text), _letters(kept)
        lost += sum((before - after).values())
        total += sum(before.values())
    if total >= _FEWEST_TOKENS and max_lost < lost / total < 0.5:
        yield warn(
            f"{_percent(lost / total)} of the letters and digits of the texts are not in their tokens",
            hint="compare a text with `tokenizer.decode(tokenizer(text).input_ids)`; use a tokenizer that covers it",
            lost=lost / total,
        )


def _is_packed(decoded: Decoded) -> bool:
    """Whether rows are pieces of longer texts: all of one length, none padded, labels per token."""
    return (
        not decoded.padded
        and not decoded.sequence_labels
        and all(len(row.ids) == decoded.longest for row in decoded.rows)
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


def _takes(model: torch.nn.Module, name: str) -> bool:
    try:
        return name in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


def _holds(row: TokenRow, marks: tuple[int, ...]) -> bool:
    return not set(marks).isdisjoint(row.ids)


def _pad_in(decoded: Decoded, marks: tuple[int, ...]) -> bool:
    return decoded.codec.roles.get("pad") in marks


def _words(decoded: Decoded) -> list[int]:
    """All ids that stand for text, the unknown one included."""
    unknown = decoded.codec.roles.get("unk")
    return [i for row in decoded.rows for i in row.ids if i == unknown or i not in decoded.codec.special]


def _unknowns(row: TokenRow, decoded: Decoded) -> int:
    return row.ids.count(decoded.codec.roles.get("unk", -1))


def _unknown_share(decoded: Decoded) -> float:
    roles = decoded.codec.roles
    words = _words(decoded)
    if not words or roles.get("unk") in (None, roles.get("bos"), roles.get("eos"), roles.get("pad")):
        return 0.0
    return sum(_unknowns(row, decoded) for row in decoded.rows) / len(words)


def _lower_bound(share: float, count: int, z: float = 2.33) -> float:
    """The Wilson lower bound of a share, at 99 %."""
    centre = share + z * z / (2 * count)
    margin: float = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return (centre - margin) / (1 + z * z / count)


def _letters(text: str) -> Counter[str]:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return Counter(character for character in folded if character.isalnum())


def _tokens(decoded: Decoded, ids: tuple[int, ...]) -> str:
    return f"`{excerpt(decoded.codec.decode(ids) or ' '.join(map(str, ids))).replace('`', chr(39))}`"


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text on one line, control and invisible characters written out."""
    line = " ".join(text[: 4 * length].split())
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in line
    )
    return shown if len(shown) <= length else shown[: length - 1] + "…"
