"""Masked language modelling: what is hidden, and what is left in sight."""

from __future__ import annotations

from collections.abc import Iterator

from debugkit import Finding, Target, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.supervision import Supervision
from debugkit.probes.token_targets import TokenTargets
from debugkit.tokens.codec import Codec

_FEWEST = 3
_FEW_SPECIAL = 0.01
_MASKER = "hide some of them: `DataCollatorForLanguageModeling(tokenizer, mlm=True)`"


def in_sight(
    supervision: Supervision, targets: TokenTargets | None, target: Target, most: float
) -> Iterator[Finding]:
    """Words to predict that the model sees at their own place."""
    if (
        supervision.task != "hidden"
        or targets is None
        or not targets.sees_answer
        or targets.causal is not False
        or not targets.local  # an autoencoder's scores come from the row as a whole
    ):
        return
    asked = [
        (row, place) for row in supervision.rows for place, counts in enumerate(row.supervised) if counts
    ]
    seen = [(row, place) for row, place in asked if row.tokens[place] == row.labels[place]]
    share = len(seen) / max(len(asked), 1)
    looked_up = targets.matches[0].share
    if targets.shift == 0 and share == 1:
        tokenizer = getattr(target.tokenizer, "tokenizer", target.tokenizer)
        mask = None if tokenizer is None else Codec(tokenizer).roles.get("mask")
        make = fail if mask is not None else warn
        yield make(
            f"each of {len(asked):,} tokens to predict stands at its own place in the input, and the model sees it: no "
            "word is masked, so the model learns to copy",
            where=supervision.name(seen[0][0]),
            location=targets.location,
            hint=_MASKER,
            visible=len(seen),
        )
    elif share > most and looked_up > most and len(asked) >= _FEWEST:
        yield warn(
            f"{len(seen):,} of {len(asked):,} words to predict ({percent(share)}) stand in sight at their own place: most "
            "of the loss is copying",
            where=supervision.name(seen[0][0]),
            hint="label only the words that are masked, and all others -100",
            visible=len(seen),
        )


def hidden(supervision: Supervision, low: float, high: float) -> Iterator[Finding]:
    """How much is hidden, and whether special tokens are among it."""
    if supervision.task != "hidden":
        return
    codec = supervision.codec
    asked = [row.labels[p] for row in supervision.rows for p, counts in enumerate(row.supervised) if counts]
    if codec is not None:
        roles = {codec.roles.get(role) for role in ("cls", "sep", "bos", "eos", "pad")} - {None}
        special = [label for label in asked if label in roles]
        if len(special) >= _FEWEST and len(special) > _FEW_SPECIAL * len(asked):
            names = ", ".join(
                codec.quote((label,)) for label in sorted({label for label in special if label})[:3]
            )
            yield warn(
                f"{len(special):,} of {len(asked):,} words to predict are special tokens ({names}): they are always at "
                "the same place, so there is nothing to learn from them",
                hint="tokenise with `return_special_tokens_mask=True`, so that the collator leaves them alone",
                special=len(special),
            )
    tokens = sum(row.length for row in supervision.rows)
    share = len(asked) / max(tokens, 1)
    if asked and not low <= share <= high:
        yield note(
            f"{percent(share)} of the tokens are to be predicted; 15 % is usual for masked words", share=share
        )
