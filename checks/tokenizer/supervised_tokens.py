"""Tokens that carry a label and should not, and those that should and do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, note
from debugkit.data.shares import percent
from debugkit.probes.samples import Samples
from debugkit.probes.supervision import Supervision
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.token_targets import TokenTargets

from ._hidden_words import hidden, in_sight
from ._supervised_ends import end_of_text, padding
from ._turns import open_ends, prompts
from ._unsupervised_rows import RowCount, row_counts, unsupervised

_TASKS = {
    "next": "the next token",
    "hidden": "masked words",
    "tags": "tags",
    "written": "a sequence to write",
}


@check
def supervised_tokens(
    supervision: Supervision,
    targets: TokenTargets | None,
    samples: Samples | None,
    ids: TokenIds | None,
    target: Target,
    *,
    max_without: Annotated[
        float,
        Field(gt=0, lt=1, description="share of rows without a supervised token above which the check warns"),
    ] = 0.5,
    max_prompt: Annotated[
        float,
        Field(gt=0, lt=1, description="share of the users' words with labels above which the check warns"),
    ] = 0.5,
    max_visible: Annotated[
        float,
        Field(gt=0, lt=1, description="share of masked words left in sight above which the check warns"),
    ] = 0.5,
    min_hidden: Annotated[
        float,
        Field(ge=0, lt=1, description="share of masked words below which a note says that it is unusual"),
    ] = 0.05,
    max_hidden: Annotated[
        float,
        Field(gt=0, le=1, description="share of masked words above which a note says that it is unusual"),
    ] = 0.5,
) -> Iterator[Finding]:
    """Tokens that carry a label and should not, and those that should and do not.

    Which labels count is read from the gradient of the loss on a few rows, so that it does not matter how tokens are
    left out: by -100, by another ignored label, or by a mask. The first rows are then looked at token by token, and
    all scanned rows for whether they have a label at all.

    ## Why is this bad?
    A run without supervised tokens looks healthy in every log but the loss. Padding that counts makes the loss look
    low and drowns the rest. A padding token that is also the end of text is ignored in both roles by the usual
    collators, and the model never learns to stop. A model trained on what users say learns to ask. A masked language
    model whose inputs are not masked learns to copy.

    ## What to do
    Look at a few rows with `debugkit peek`. Give padding the label -100, and the padding token an id of its own. For
    conversations, let the chat template mark the answers (`{% generation %}`) and label those only.

    ## Known limits
    Prompts are told from answers by the marks of the tokenizer's chat template; prompts written in another way
    are not recognised. Losses that are no cross-entropy are taken at their labels: all but -100 count.

    ## References
    - https://huggingface.co/docs/transformers/main_classes/data_collator
    - https://github.com/huggingface/trl/issues/632
    - https://arxiv.org/abs/1810.04805
    """
    rows = row_counts(supervision, samples, ids)
    found = [*unsupervised(rows, supervision, samples, max_without)]
    if not found or found[0].level != "fail" or any(row.supervised for row in rows):
        found += padding(supervision)
        found += [*in_sight(supervision, targets, target, max_visible)] or [
            *hidden(supervision, min_hidden, max_hidden)
        ]
        found += end_of_text(supervision)
        found += prompts(supervision, target, max_prompt)
        found += open_ends(supervision, target)
    yield from found
    yield _measured(rows, supervision)


def _measured(rows: Sequence[RowCount], supervision: Supervision) -> Finding:
    tokens, asked = sum(row.length for row in rows), sum(row.supervised for row in rows)
    task = _TASKS[supervision.task]
    share = f", {percent(asked / tokens)}" if 0 < asked <= tokens else ""
    how = "" if supervision.traced else ", taking every label but -100 to count"
    seams = _seams(supervision)
    crossing = f"; {seams:,} of them follow an end of text in their row" if seams else ""
    return note(
        f"{asked:,} of {tokens:,} tokens in {len(rows):,} row{'s' if len(rows) > 1 else ''} have a label ({task}{share}){crossing}{how}",
        supervised=asked,
        tokens=tokens,
        rows=len(rows),
    )


def _seams(supervision: Supervision) -> int:
    """How many supervised tokens follow an end of text inside a row, as the first of another text do."""
    if supervision.eos is None or supervision.task != "next":
        return 0
    return sum(
        row.supervised[place] and row.content[place] and row.tokens[place] != supervision.eos
        for row in supervision.rows
        for place in range(1, len(row.tokens))
        if row.tokens[place - 1] == supervision.eos
    )


_PAD, _END, _VOCABULARY = 0, 1, 24


class _Writer(torch.nn.Module):
    """The loss of predicting each token from those before it; labels are shifted here."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(_VOCABULARY, 48, padding_idx=_PAD)
        self.memory = torch.nn.GRU(48, 48, batch_first=True)
        self.head = torch.nn.Linear(48, _VOCABULARY)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        scores = self.head(self.memory(self.embedding(input_ids))[0])
        loss = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": scores}


def _target(unlabelled: Sequence[int] = (_PAD,), answer_from: int = 0) -> Target:
    """Sequences that count up from a random start and come to an end; some tokens have no label."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(96):
        start = int(torch.randint(2, _VOCABULARY, (1,), generator=generator))
        steps = torch.arange(5 + number % 8) * (1 + number % 3)
        rows.append([*((start - 2 + steps) % (_VOCABULARY - 2) + 2).tolist(), _END])

    def collate(picked: list[list[int]]) -> dict[str, torch.Tensor]:
        width = max(map(len, picked))
        ids = torch.tensor([row + [_PAD] * (width - len(row)) for row in picked])
        labels = ids.clone()
        for index in unlabelled:
            labels[ids == index] = -100
        labels[:, :answer_from] = -100
        return {"input_ids": ids, "attention_mask": (ids != _PAD).long(), "labels": labels}

    loader: Any = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    return Target(_Writer(), loader)


def good() -> Target:
    return _target()


def good_answers_only() -> Target:
    return _target(answer_from=3)


def bad_padding_has_labels() -> Target:
    return _target(unlabelled=())


def bad_nothing_has_labels() -> Target:
    return _target(answer_from=99)


def bad_long_rows_lose_their_answer() -> Target:
    target = _target()
    inner = target.train_loader.collate_fn  # type: ignore[union-attr]

    def collate(picked: list[list[int]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = inner(picked)
        batch["labels"][(batch["attention_mask"].sum(1) > 10)] = -100
        return batch

    target.train_loader.collate_fn = collate  # type: ignore[union-attr]
    return target
