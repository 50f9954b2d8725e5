"""Encoders that see one side only, or no order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.dependence import Dependence
from debugkit.probes.supervision import Supervision
from debugkit.probes.token_ids import TokenIds

from ._same_tokens import alike_rows, alike_tokens


@check
def bidirectional(
    dependence: Dependence, supervision: Supervision | None, ids: TokenIds | None
) -> Iterator[Finding]:
    """An encoder that sees only one side of a token, or no order.

    Tokens of a row are exchanged from some place on, and in another row they are put in another order. A model that has
    to fill in hidden words must see what comes after them. If outputs stay exactly as they are in every order, in
    double precision too, nothing tells the model where a token stands.

    ## Why is this bad?
    An encoder whose attention is masked as a decoder's (a configuration with `is_decoder = True`, a causal mask copied
    along) fills in words from their left side only. Attention without positions sees a bag of words: "dog bites man" and
    "man bites dog" are one to it. Both train without complaint.

    ## What to do
    Remove the causal mask (`config.is_decoder = False`, `is_causal=False`), and add positions: learned, sinusoidal or
    rotary.

    ## Known limits
    Decoders that classify rows or tokens see the left side by design, averages of words see no order by design: both are
    told in a note. Missing order counts only where the data shows that it is needed: the same token with different
    targets at two places of a row, or rows that differ in nothing but the order of their tokens and have different
    labels. Ids of which each place has its own, such as categories of a table, are not judged.

    ## References
    - https://arxiv.org/abs/1810.04805
    """
    task = supervision.task if supervision is not None else None
    span, order = dependence.span, dependence.order
    if dependence.mixing is not None and dependence.mixing.change:
        raise Unavailable(
            "outputs depend on other rows too (see `batch-independence`), so no row can be judged"
        )
    if dependence.next_step or task in ("next", "written"):
        raise Unavailable("the model predicts what comes next, so it must not see it (see `causal-leak`)")
    if span is None and order is None:
        raise Unavailable("the model reads no token ids, or too few rows to try another order")
    findings = []
    if span is not None and span.start:
        earlier = span.change[: span.start]
        findings.append(_sight(float(earlier.max()), len(earlier), task == "hidden", dependence))
    if order is not None and order.exact:
        findings.append(_orderless(dependence, order.pairs, supervision, ids))
    elif order is not None:
        findings.append(
            note(f"another order of tokens moves the outputs by {order.change:.2g}", change=order.change)
        )
    yield from findings


def _sight(moved: float, count: int, hidden: bool, dependence: Dependence) -> Finding:
    assert dependence.span is not None
    start = dependence.span.start
    if moved > 0.0:
        return note(
            f"tokens from position {start} on move the {count} outputs before it by {moved:.2g}", change=moved
        )
    said = f"other tokens from position {start} on leave the {count} outputs before it exactly as they are"
    if not hidden:
        return note(f"{said}: the model reads from left to right")
    return fail(
        f"{said}, and the task is to fill in hidden words: nothing after a word helps to predict it",
        where=dependence.main,
        hint="remove the causal mask (`config.is_decoder = False`, `is_causal=False`), or train on the next token",
    )


def _orderless(
    dependence: Dependence, pairs: bool, supervision: Supervision | None, ids: TokenIds | None
) -> Finding:
    """What it means that no order changes anything: a failure where the targets depend on it."""
    said = f"another order of the tokens of `{dependence.main}` changes nothing about their outputs"
    hint = "add positions to the embeddings, or rotary ones to the attention"
    if supervision is not None and supervision.task in ("hidden", "tags"):
        found, rows = alike_tokens(supervision)
        if found:
            return fail(
                f"{said}, and in {found:,} of {rows:,} rows the same token has different targets at two places: no training "
                "can get both right",
                where=dependence.main,
                hint=hint,
                rows=found,
            )
    elif ids is not None and pairs:
        found, rows = alike_rows(ids)
        if found:
            return warn(
                f"{said}, and {found:,} of {rows:,} rows hold the tokens of another row in another order and have another "
                "label",
                where=dependence.main,
                hint=hint,
                rows=found,
            )
    return note(
        f"{said}: the model {'compares tokens without positions' if pairs else 'reads a bag of words'}"
    )


class _Encoder(nn.Module):
    """A masked language model with one attention layer."""

    def __init__(
        self, causal: bool = False, positions: bool = True, vocabulary: int = 14, width: int = 16
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(10, width) * 0.1) if positions else None
        self.mix, self.head = nn.Linear(width, 3 * width), nn.Linear(width, vocabulary)
        self.causal = causal

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        if self.place is not None:
            h = h + self.place[: ids.shape[1]]
        q, k, v = self.mix(h).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        logits: torch.Tensor = self.head(h + seen)
        return logits


def _hidden_words(model: nn.Module) -> Target:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 14, (32, 10), generator=generator)
    hidden = torch.rand(ids.shape, generator=generator) < 0.25
    hidden[:, 5] |= ~hidden.any(1)
    labels = ids.masked_fill(~hidden, -100)
    rows = list(zip(torch.split(ids.masked_fill(hidden, 1), 8), torch.split(labels, 8), strict=True))
    return Target(
        model, rows, lambda scores, y: nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
    )


def good() -> Target:
    return _hidden_words(_Encoder())


def bad_causal_encoder() -> Target:
    return _hidden_words(_Encoder(causal=True))


def bad_no_positions() -> Target:
    return _hidden_words(_Encoder(positions=False))
