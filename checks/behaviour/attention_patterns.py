"""Attention goes to padding, or has collapsed: heads that look at one position only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.attention_maps import AttentionMaps
from debugkit.probes.pad_trials import PadTrials
from debugkit.testing import padded_rows

from ._padding_owner import owned_by_padding

_FEWEST_TOKENS = 6
_FEWEST_HEADS = 2
_MOST_SINK = 0.5


@check
def attention_patterns(
    maps: AttentionMaps,
    trials: PadTrials | None,
    *,
    min_entropy: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="entropy of a head's attention, relative to attention spread evenly, under which it counts as "
            "collapsed; 1.0 in a fresh model",
        ),
    ] = 0.05,
    max_collapsed: Annotated[
        float, Field(gt=0, le=1, description="share of collapsed heads to warn at")
    ] = 0.9,
) -> Iterator[Finding]:
    """Attention goes to padding, or has collapsed: heads that look at one position only.

    Attention weights of one row are read where modules give them, or asked of a model of transformers
    (`output_attentions`, with its `eager` attention for this pass).

    ## Why is this bad?
    Attention on padding that the mask marks mixes what is no text into every token, however little it is. And a head
    whose weights are all on one position passes no gradient to its queries and keys: most heads in that state come
    from scores that are too large, such as a dot product that is not divided by the square root of its size.

    ## What to do
    Add the mask to the scores before the softmax, with `-inf` (`masked_fill(mask == 0, -inf)`), not a small negative
    number and not after it. Divide scores by the square root of the head size, and lower the learning rate or
    normalise queries and keys where they have grown in training.

    ## Known limits
    Attention on the first token and on separators is normal in trained models, and only noted. Fused attention gives
    no weights. Attention that a library's architecture gives to padding is a note.

    ## References
    - https://aclanthology.org/W19-4828/
    - https://arxiv.org/abs/2309.17453
    - https://arxiv.org/abs/2303.06296
    """
    findings = [*_on_padding(maps, trials), *_collapsed(maps, min_entropy, max_collapsed)]
    yield from findings
    if not any(finding.level != "note" for finding in findings):
        yield _measured(maps)


def _on_padding(maps: AttentionMaps, trials: PadTrials | None) -> Iterator[Finding]:
    if (layer := maps.on_pads) is None:
        return
    said = f"up to {layer.on_pads:.2g} of a token's attention goes to the {maps.pads} positions of padding"
    reported = owned_by_padding(trials)
    if reported is not None:
        yield note(f"{said}, which comes from {reported}", where=layer.name)
    elif not maps.own:
        yield note(f"{said}: this architecture attends to padding", where=layer.name)
    else:
        layers = sum(one.on_pads > maps.tolerance for one in maps.layers)
        yield fail(
            f"{said} although `{maps.marked}` marks them, in {layers} of {len(maps.layers)} layers",
            where=layer.name,
            hint=f"put the scores of padding at `-inf` before the softmax: `scores.masked_fill({maps.marked} == 0, "
            "-inf)`",
            share=layer.on_pads,
            layers=layers,
        )


def _collapsed(maps: AttentionMaps, least: float, most: float) -> Iterator[Finding]:
    heads = [
        (layer.name, entropy, edge)
        for layer in maps.layers
        for entropy, edge in zip(layer.entropy, layer.on_edge, strict=True)
        if entropy is not None
    ]
    if maps.tokens < _FEWEST_TOKENS or len(heads) < _FEWEST_HEADS:
        return
    found = [(name, entropy) for name, entropy, edge in heads if entropy < least and edge < _MOST_SINK]
    if len(found) >= most * len(heads):
        worst = sorted(entropy for _, entropy in found)[len(found) // 2]
        yield warn(
            f"{len(found)} of {len(heads)} attention heads put all weight on one position (entropy {worst:.1g} of what "
            "even attention has): queries and keys get next to no gradient",
            where=found[0][0],
            hint="divide the scores by the square root of the head size, or lower the scale of queries and keys",
            heads=len(found),
        )


def _measured(maps: AttentionMaps) -> Finding:
    def mean(values: Iterator[float | None]) -> float:
        known = [value for value in values if value is not None]
        return sum(known) / max(len(known), 1)

    entropy = mean(value for layer in maps.layers for value in layer.entropy)
    own = mean(value for layer in maps.layers for value in layer.on_self)
    edge = mean(value for layer in maps.layers for value in layer.on_edge)
    pads = max(layer.on_pads for layer in maps.layers)
    heads = sum(len(layer.entropy) for layer in maps.layers)
    return note(
        f"{heads} heads in {len(maps.layers)} layers: entropy {entropy:.2f} of what even attention has, {own:.0%} on "
        f"the own position, {edge:.0%} on the first and last token, {pads:.1g} on padding ({maps.pads} positions)",
        entropy=entropy,
        on_self=own,
        on_edge=edge,
        on_pads=pads,
    )


class _Reader(torch.nn.Module):
    """Logits ``[batch, 2]`` and attention weights from two heads over words."""

    def __init__(self, fill: float, scale: float) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 32)
        self.mix = torch.nn.Linear(32, 96)
        self.head = torch.nn.Linear(32, 2)
        self.fill, self.scale = fill, scale

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, length = input_ids.shape
        hidden = self.embedding(input_ids)
        query, key, value = self.mix(hidden).view(rows, length, 2, 48).transpose(1, 2).chunk(3, -1)
        scores = query @ key.mT * self.scale
        scores = scores.masked_fill(attention_mask[:, None, None] == 0, self.fill)
        weights = scores.softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        real = attention_mask.unsqueeze(-1)
        logits: torch.Tensor = self.head(((hidden + mixed) * real).sum(1) / real.sum(1))
        return logits, weights


def _loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits, _ = model(batch["input_ids"], batch["attention_mask"])
    return torch.nn.functional.cross_entropy(logits, batch["labels"])


def good() -> Target:
    return Target(_Reader(-torch.inf, 0.25), padded_rows(6, 12), training_step=_loss)


def bad_weak_mask() -> Target:
    return Target(_Reader(-1.0, 0.25), padded_rows(6, 12), training_step=_loss)


def bad_scores_not_scaled() -> Target:
    return Target(_Reader(-torch.inf, 4096.0), padded_rows(6, 12), training_step=_loss)
