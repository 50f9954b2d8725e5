"""Padding changes what a model gives for the text beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.attention_maps import AttentionMaps
from debugkit.probes.pad_trials import PadTrials
from debugkit.probes.padding_effect import PaddingEffect
from debugkit.probes.sequence_row import SequenceRow
from debugkit.testing import padded_rows

from ._padding_owner import owned_by_padding


@check
def padding_invariance(
    effect: PaddingEffect,
    row: SequenceRow,
    maps: AttentionMaps | None,
    trials: PadTrials | None,
    *,
    tolerance: Annotated[
        float,
        Field(
            gt=0,
            description="largest difference between outputs with and without padding, in standard deviations of the "
            "outputs; 50 times as much in half precision",
        ),
    ] = 1e-3,
) -> Iterator[Finding]:
    """Padding changes what a model gives for the text beside it.

    One padded row runs in eval mode as it is and without its padding. The outputs of its content have to be the same.
    Where they are not, the two runs are compared module by module, to say where padding comes in. A model of one's
    own that takes a mask gets a few positions of padding where the data has none.

    ## Why is this bad?
    What a sample is padded to depends on the other samples of its batch. Where padding enters an average, an attention
    or a recurrent state, the same text gets another result in every batch, and the worse one the shorter it is.

    ## What to do
    Leave padding out where it comes in: divide a masked sum by the number of tokens instead of taking the mean, give
    attention its `key_padding_mask`, pack what goes into a recurrent layer (`pack_padded_sequence`), and take maxima
    after filling with the smallest value.

    ## Known limits
    A mask that is missing or wrong in the data is reported by `padding`, and a classifier that reads its result from
    a position of padding by `pooled-token`. Convolutions and Fourier transforms mix neighbours by design, and the
    architectures of a library can't be changed: both are notes. A recurrent layer that reads padding backwards and has
    an output for each position is a warning. Models that take rows of one length only are not
    judged.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pack_padded_sequence.html
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html
    """
    most = tolerance * row.tolerance / 1e-3
    if effect.difference <= most:
        side = "added" if effect.added else f"on the {'left' if effect.left else 'right'}"
        yield note(
            f"{effect.pads} positions of padding {side} change outputs by {effect.difference:.1g} standard deviations",
            difference=effect.difference,
        )
        return
    amount = f"{effect.difference:.2g} standard deviations"
    reported = owned_by_padding(trials)
    if reported is None and row.one_for_all and _is_pad_pooled(row) and not row.decodes:
        reported = "a position of padding that is pooled (see `pooled-token`)"
    if reported is None and maps is not None and maps.own and (layer := maps.on_pads) is not None:
        reported = f"the attention of `{layer.name}` (see `attention-patterns`)"
    if reported is not None:
        yield note(f"padding changes outputs by {amount}, which comes from {reported}")
        return
    yield _verdict(effect, amount, row.one_for_all)


def _verdict(effect: PaddingEffect, amount: str, one_for_all: bool) -> Finding:
    leak = effect.leak
    where = leak.module if leak is not None and leak.module else None
    place = _place(effect)
    if leak is not None and leak.local:
        return note(
            f"padding changes outputs by {amount}: it enters {place}, behind operations that mix neighbours by design",
            where=where,
            difference=effect.difference,
        )
    if leak is None or not leak.own:
        return note(
            f"padding changes outputs by {amount}: this architecture takes it up {place}; rows of similar length in a "
            "batch keep it small",
            where=where,
            difference=effect.difference,
        )
    said = (
        f"{effect.pads} positions of padding {'put behind the row ' if effect.added else ''}change the outputs of its "
        f"content by {amount}"
    )
    if effect.marked is None:
        return warn(
            f"{said}, and nothing tells the model what is padding: it enters {place}",
            where=where,
            hint=_hint(effect),
            difference=effect.difference,
        )
    make = warn if effect.added or (leak.recurrent and not one_for_all) else fail
    return make(
        f"{said} although `{effect.marked}` marks them: they enter {place}",
        where=where,
        hint=_hint(effect),
        difference=effect.difference,
    )


def _place(effect: PaddingEffect) -> str:
    leak = effect.leak
    if leak is None:
        return "somewhere"
    name = f"in `{leak.module}` (`{leak.kind}`)" if leak.module else f"in `{leak.kind}.forward`"
    return f"{name}, after `{leak.after}`" if leak.after else name


def _hint(effect: PaddingEffect) -> str:
    given = f"`{effect.marked}`" if effect.marked is not None else "a mask or the lengths"
    if effect.leak is not None and effect.leak.recurrent:
        return f"pack the sequences by {given} (`pack_padded_sequence`), and take the state at the last real position"
    if effect.leak is not None and effect.leak.kind == "MultiheadAttention":
        return f"pass `key_padding_mask` to the attention, made from {given}"
    return f"use {given} there: leave padding out of attention, averages, maxima and normalisation over positions"


def _is_pad_pooled(row: SequenceRow) -> bool:
    return len(row.pooled) == 1 and not bool(row.call.content[row.pooled[0]])


class _Averages(torch.nn.Module):
    """Logits ``[batch, 2]`` from the mean over a row's words, with or without padding."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 16)
        self.head = torch.nn.Linear(16, 2)
        self.masked = masked

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        if self.masked:
            weights = attention_mask.unsqueeze(-1)
            hidden = (hidden * weights).sum(1) / weights.sum(1)
        else:
            hidden = hidden.mean(1)
        logits: torch.Tensor = self.head(hidden)
        return logits


class _Recurrent(torch.nn.Module):
    """Logits ``[batch, 2]`` from the last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 16, padding_idx=0)
        self.gru = torch.nn.GRU(16, 16, batch_first=True)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.gru(self.embedding(input_ids))[1][-1])
        return logits


def good() -> Target:
    return Target(_Averages(masked=True), padded_rows(), torch.nn.CrossEntropyLoss())


def bad_mean_over_padding() -> Target:
    return Target(_Averages(masked=False), padded_rows(), torch.nn.CrossEntropyLoss())


def bad_state_after_padding() -> Target:
    return Target(_Recurrent(), padded_rows(mask=False), torch.nn.CrossEntropyLoss())
