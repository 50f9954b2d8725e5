"""Unknown tokens: words that are all the same to the model."""

from __future__ import annotations

from collections.abc import Iterator

from debugkit import Finding, fail, note, warn
from debugkit.data.shares import lower_bound, percent
from debugkit.probes.decoded import Decoded, TokenRow

_Z = 2.33  # 99 % on one side


def unknown(decoded: Decoded, max_unknown: float, mostly_unknown: float) -> Iterator[Finding]:
    """Too many unknown tokens, unless they stand in the text itself."""
    share, count = unknown_share(decoded), len(_words(decoded))
    if not count or share <= max_unknown:
        return
    name = decoded.codec.quote((decoded.codec.roles["unk"],))
    said = f"{percent(share)} of {count:,} tokens are {name}"
    if share >= mostly_unknown:
        yield fail(
            f"{said}: the model can't read the text",
            hint="load the tokenizer from the model's folder and look at `len(tokenizer)`; transformers 5 takes "
            "`vocab=`, and an unknown keyword such as `vocab_file=` leaves the vocabulary empty",
            unknown=share,
        )
    elif decoded.codec.reads_anything:
        yield note(f"{said}: the text holds it, and the tokenizer can read any other word", unknown=share)
    elif lower_bound(share, count, _Z) > max_unknown:
        yield warn(
            f"{said}, more than {percent(max_unknown)}: these words are the same to the model",
            where=f"train[{max(decoded.rows, key=lambda row: _unknowns(row, decoded)).sample}]",
            hint="normalise the text as the tokenizer expects it (case, accents, script), or use a tokenizer with "
            "subwords",
            unknown=share,
        )


def unknown_share(decoded: Decoded) -> float:
    """The share of unknown tokens among all that stand for text."""
    roles = decoded.codec.roles
    words = _words(decoded)
    if not words or roles.get("unk") in (None, roles.get("bos"), roles.get("eos"), roles.get("pad")):
        return 0.0
    return sum(_unknowns(row, decoded) for row in decoded.rows) / len(words)


def _words(decoded: Decoded) -> list[int]:
    """All ids that stand for text, the unknown one included."""
    unk = decoded.codec.roles.get("unk")
    return [i for row in decoded.rows for i in row.ids if i == unk or i not in decoded.codec.special]


def _unknowns(row: TokenRow, decoded: Decoded) -> int:
    return row.ids.count(decoded.codec.roles.get("unk", -1))
