"""Language models whose targets are not the next token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.token_targets import TokenTargets
from debugkit.tokens.codec import Codec

_LABELS_ONCE = "the model shifts labels itself: pass `labels=input_ids`, with -100 where no loss is wanted"
_SHIFT = (
    "score position t against token t + 1: `logits[:, :-1]` with `ids[:, 1:]`, or `x, y = ids[:-1], ids[1:]`"
)
_UNSHIFTED = (
    "this model does not shift labels: pass them one position to the left, `labels[:, :-1] = input_ids[:, 1:]`, "
    "with -100 in the last place"
)
_DECODER = (
    "leave `decoder_input_ids` out where the model makes them from `labels`; else start them with the start token, "
    "followed by all labels but the last"
)


@check
def label_shift(
    targets: TokenTargets,
    target: Target,
    *,
    min_hidden: Annotated[
        float,
        Field(gt=0, le=1, description="share of targets hidden by the mask token from which the check warns"),
    ] = 0.6,
) -> Iterator[Finding]:
    """A language model whose targets are not the next token.

    The step runs on a few rows. The gradient of its loss with respect to the scores of a position shows which
    token that position has to predict, however labels are shifted on the way. A second run, with tokens replaced by
    noise, shows which tokens the scores depend on. A causal model has to predict the first token that it can't see.

    ## Why is this bad?
    Some models shift labels themselves and some don't. Where nobody shifts, each position predicts the token that it
    was given: the loss falls to 0 within minutes and the model has learned to copy. Where both the data and the model
    shift, each position predicts the token after the next, and generated text is missing every second word. A decoder
    that is given its labels unshifted copies too.

    ## What to do
    Shift once. `labels=input_ids` is right for models of transformers that shift labels themselves, which most causal
    ones do; `x, y = ids[:-1], ids[1:]` is right for a loss that compares position by position.

    ## Known limits
    Judged are losses whose gradient is that of cross-entropy over classes for each token. Rows that repeat
    themselves, in which several shifts explain the targets, are not judged, nor are models that predict one token
    for a whole row. A model that sees the token that it has to predict because its attention is not masked is the
    business of `causal-leak`.

    ## References
    - https://github.com/huggingface/transformers/issues/35066
    - https://huggingface.co/docs/transformers/tasks/language_modeling
    """
    if targets.shift is None:
        yield _unexplained(targets, target, min_hidden)
    elif targets.causal is None or targets.sees_answer is None:
        yield note(
            f"{_which(targets)}; which tokens the scores depend on could not be told", shift=targets.shift
        )
    elif targets.causal and targets.sees_answer:
        yield _copies(targets, target)
    elif targets.causal and (distance := targets.shift - (targets.reach or 0)) > 1:
        yield _skips(targets, target, distance)
    else:
        yield note(f"{_which(targets)}{_sight(targets)}", shift=targets.shift, loss=targets.loss)


def _copies(targets: TokenTargets, target: Target) -> Finding:
    shift = targets.shift or 0
    if targets.decoder:
        said = (
            f"the decoder is given the tokens that it has to predict: {_which(targets)}, so it learns to copy"
        )
        hint = _DECODER
    else:
        before = " before it" if shift < 0 else ""
        said = (
            f"{_which(targets)}: the model learns to copy the token{before} and nothing about what comes next"
        )
        hint = _UNSHIFTED if target.loss_fn is None and shift == 0 and _shifts_nothing(target) else _SHIFT
    return fail(said, location=targets.location, hint=hint, shift=shift, **_counts(targets))


def _skips(targets: TokenTargets, target: Target, distance: int) -> Finding:
    shift = targets.shift or 0
    seen = "" if targets.reach == 0 else f" and sees no token after t - {-(targets.reach or 0)}"
    skipped = "the next token is" if distance == 2 else f"{distance - 1} tokens are"
    return fail(
        f"{_which(targets)}{seen}: {skipped} never predicted, as when labels are shifted twice",
        location=targets.location,
        hint=_LABELS_ONCE if _shifts_nothing(target) else _SHIFT,
        shift=shift,
        **_counts(targets),
    )


def _unexplained(targets: TokenTargets, target: Target, min_hidden: float) -> Finding:
    mask = None if target.tokenizer is None else Codec(target.tokenizer).roles.get("mask")
    live = targets.targets[:, :-1] >= 0
    hidden = (targets.ids[:, 1:] == mask) & live
    if mask is not None and targets.causal and live.any() and bool(hidden.sum() >= min_hidden * live.sum()):
        share = float(hidden.sum() / live.sum())
        return warn(
            f"the mask token stands in place of {percent(share)} of the tokens that a causal model has to predict: it "
            "learns to fill in gaps that it will never meet, and no other token",
            hint="use `DataCollatorForLanguageModeling(tokenizer, mlm=False)`",
            hidden=share,
        )
    best = max(targets.matches, key=lambda shift: targets.matches[shift].share)
    match = targets.matches[best]
    if 2 * match.hits < match.compared:
        raise Unavailable(
            "positions are not trained to predict tokens of their row (but tags or hidden words, say), so there is no "
            "shift to judge"
        )
    return note(
        f"{match.hits:,} of {match.compared:,} targets are the token at t {best:+d}: too few, or too alike at other "
        "distances, to judge the shift",
        share=match.share,
    )


def _which(targets: TokenTargets) -> str:
    """``position t is trained to predict token t + 1 (44 of 44 in 4 rows)``."""
    shift = targets.shift or 0
    token = "token t itself" if shift == 0 else f"token t {'+' if shift > 0 else '-'} {abs(shift)}"
    match = targets.matches[shift]
    rows = len(targets.ids)
    return (
        f"position t is trained to predict {token} ({match.hits:,} of {match.compared:,} in "
        f"{rows} row{'s' if rows > 1 else ''})"
    )


def _sight(targets: TokenTargets) -> str:
    if targets.causal:
        return " and sees no later one" if targets.shift == 1 else " and does not see it"
    if not targets.sees_answer:
        return " and does not see it"
    return " and sees that token; attention is not causal"


def _counts(targets: TokenTargets) -> dict[str, Any]:
    match = targets.matches[targets.shift or 0]
    return {"hits": match.hits, "compared": match.compared, "loss": targets.loss}


def _shifts_nothing(target: Target) -> bool:
    """Whether the user's own code has no place where it could shift: the model computes the loss."""
    return target.loss_fn is None and hasattr(target.model, "config")


_LENGTH = 12


class _Writer(torch.nn.Module):
    """Scores ``[batch, length, 32]`` of the next token from the tokens so far."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 64)
        self.memory = torch.nn.GRU(64, 64, batch_first=True)
        self.head = torch.nn.Linear(64, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.memory(self.embedding(ids))[0])
        return scores


def _target(shift: int) -> Target:
    """Sequences in which each token is its predecessor's successor in one fixed order, in steps of 1 to 3."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(32, generator=generator)
    steps = torch.arange(96) % 3 + 1
    starts = torch.randint(32, (96,), generator=generator)
    places = starts[:, None] + steps[:, None] * torch.arange(_LENGTH + 3)
    ids = order[places % 32]
    x, y = ids[:, 1 : _LENGTH + 1], ids[:, 1 + shift : _LENGTH + 1 + shift]
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    return Target(
        _Writer(),
        loader,
        lambda scores, y: torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten()),
    )


def good() -> Target:
    return _target(1)


def bad_copies() -> Target:
    return _target(0)


def bad_skips() -> Target:
    return _target(2)


def bad_backwards() -> Target:
    return _target(-1)
