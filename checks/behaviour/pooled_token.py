"""A classifier of rows reads its result from a position of padding, or from one that has not seen the row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.errors import Unavailable
from debugkit.probes.pad_trials import PadTrials
from debugkit.probes.padding_effect import PaddingEffect
from debugkit.probes.sequence_row import SequenceRow
from debugkit.testing import padded_rows
from debugkit.tracing.source import is_library_class

from ._padding_owner import owned_by_padding


@check
def pooled_token(
    target: Target, row: SequenceRow, effect: PaddingEffect | None, trials: PadTrials | None
) -> Iterator[Finding]:
    """A classifier of rows reads its result from a position of padding, or from one that has not seen the row.

    One row, a padded one where there is any, runs in eval mode. The gradient of its result says which positions of the
    last hidden states it is computed from, and which tokens it depends on.

    ## Why is this bad?
    A model that reads from left to right knows the whole text at its last token only: pooled earlier, the rest of the
    text has no influence. And the hidden state of a padding position depends on how much padding a batch happens to
    need.

    ## What to do
    Pool the last position that is no padding: `hidden[arange, mask.sum(1) - 1]` for padding on the right. For the
    classifiers of transformers set `model.config.pad_token_id = tokenizer.pad_token_id`, and use a padding token of
    its own: they take the last token with another id, which is not the end of the text where both are the same.

    ## Known limits
    Only results that come from a single position are judged; means, maxima and attention over positions are noted,
    and whether padding takes part in them is told by `padding-invariance`. A position in the middle of a text is a
    warning: it may be a marker that is looked up on purpose.

    ## References
    - https://github.com/huggingface/transformers/issues/35352
    - https://github.com/huggingface/transformers/issues/30004
    """
    if not row.one_for_all:
        raise Unavailable("the model gives an output for each position, not one for the row")
    if not row.pooled:
        raise Unavailable("the result has no gradient to the hidden states of the row's positions")
    content, length = row.call.content, row.call.length
    if len(row.pooled) > 1:
        pads = sum(not bool(content[place]) for place in row.pooled)
        yield note(
            f"the result is read from {len(row.pooled)} of {length} positions, {pads} of them padding",
            positions=len(row.pooled),
        )
        return
    (place,) = row.pooled
    if row.decodes:
        yield note(f"the result is read from position {place} of what the decoder reads", position=place)
        return
    if not bool(content[place]):
        yield _pad_pooled(target, row, effect, trials, place)
        return
    last = row.call.span.stop - 1
    if not row.mixes:
        yield note(
            f"the result is read from position {place}, and no position sees another one", position=place
        )
        return
    unread = [later for later in range(place + 1, last + 1) if bool(content[later])]
    unread = [later for later in unread if later not in row.reads]
    if not unread or max(row.reads) > place:
        yield note(
            f"the result is read from position {place} of a row whose content is {row.call.span.start} to {last}",
            position=place,
        )
    elif len(unread) == last - place:
        yield _too_early(target, row, place, last, len(unread))


def _pad_pooled(
    target: Target, row: SequenceRow, effect: PaddingEffect | None, trials: PadTrials | None, place: int
) -> Finding:
    if (reported := owned_by_padding(trials)) is not None:
        return note(
            f"the result is read from position {place}, which is padding: see {reported} at `padding`"
        )
    if effect is not None and not effect.matters:
        return note(
            f"the result is read from position {place}, and does not change with the padding", position=place
        )
    span = row.call.span
    configured = _configured(target)
    said = (
        f"the result is read from position {place}, which is padding: the content of the row is {span.start} to "
        f"{span.stop - 1}"
    )
    if configured is not None and row.pad is not None and configured != row.pad:
        said += f"; the model takes id {configured} for padding, and the batch is padded with {row.pad}"
        hint = f"set `model.config.pad_token_id = {row.pad}`"
    elif place == row.call.length - 1:
        hint = "pool the last real position, `hidden[arange, lengths - 1]`, or pad on the left"
    else:
        hint = "pool a position of the content: its places are where the mask is 1"
    make = warn if effect is None else fail
    return make(said, where=f"position {place}", hint=hint, position=place)


def _too_early(target: Target, row: SequenceRow, place: int, last: int, unread: int) -> Finding:
    """A position that sees none of what comes after it."""
    ids = row.call.ids
    ends = set() if ids is None else set(ids[place + 1 : last + 1].tolist())
    if len(ends) == 1 and ends <= {row.pad, _configured(target)}:
        return warn(
            f"the result is read from position {place}, before the end of the text at {last} (id {ends.pop()}): the "
            "last token is taken for padding",
            where=f"position {place}",
            hint="give the tokenizer a padding token that is not the end of the text, and set "
            "`model.config.pad_token_id` to it",
            position=place,
        )
    said = (
        f"the result is read from position {place}, and {unread} of the {int(row.call.content.sum())} tokens come after "
        "it, where it can't see them"
    )
    if len(ends) == 1 and unread > 1:
        return note(f"{said}; they are all the same, as padding is", position=place)
    if place != row.call.span.start and is_library_class(type(target.model)):
        return note(f"{said}: this architecture looks up a place in the text", position=place)
    make = fail if place == row.call.span.start else warn
    return make(
        said,
        where=f"position {place}",
        hint="pool the last real position: this model reads from left to right",
        position=place,
        unread=unread,
    )


def _configured(target: Target) -> int | None:
    """The id that the model takes for padding."""
    config: Any = getattr(target.model, "config", None)
    found = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) else None


class _Reader(torch.nn.Module):
    """Logits ``[batch, 2]`` from the state of a GRU at one position."""

    def __init__(self, pick: str) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 16)
        self.gru = torch.nn.GRU(16, 16, batch_first=True)
        self.head = torch.nn.Linear(16, 2)
        self.pick = pick

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.gru(self.embedding(input_ids))
        places = {
            "last": torch.full((len(hidden),), -1),
            "first": torch.zeros(len(hidden), dtype=torch.long),
            "end": attention_mask.sum(1) - 1,
        }[self.pick]
        logits: torch.Tensor = self.head(hidden[torch.arange(len(hidden)), places])
        return logits


def good() -> Target:
    return Target(_Reader("end"), padded_rows(), torch.nn.CrossEntropyLoss())


def bad_last_position_is_padding() -> Target:
    return Target(_Reader("last"), padded_rows(), torch.nn.CrossEntropyLoss())


def bad_first_position() -> Target:
    return Target(_Reader("first"), padded_rows(), torch.nn.CrossEntropyLoss())
