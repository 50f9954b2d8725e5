"""Padding that the model reads as text, or that is most of what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.pad_trials import PadTrials
from debugkit.probes.token_ids import TokenIds

from ._mask import mask_findings
from ._padding_share import padding_share


@check
def padding(
    target: Target,
    ids: TokenIds,
    trials: PadTrials | None,
    *,
    max_padding: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="share of all positions that may be padding, where padding each batch for itself would save "
            "a third of it",
        ),
    ] = 0.5,
    min_saved: Annotated[
        int, Field(ge=0, description="positions per row that it has to save to be worth a warning")
    ] = 32,
) -> Iterator[Finding]:
    """Padding that the model reads as text, or that is most of what it computes.

    The padding of every scanned row is found by the tokenizer's id, by the mask, or as a run of one id that stands
    nowhere else. Where the mask of the batch disagrees with it or is missing, where padding is on the left, or where
    the configuration of a classifier names no padding, two padded rows run through the model: as they are, without
    their padding, and with the remedy. What counts is whether the outputs of the text change.

    ## Why is this bad?
    Without a mask each token attends to padding as if it were text, and the more of it the shorter the text: results
    depend on the other rows of a batch. On the left it shifts the positions of a model that counts them from the
    first place. A decoder that classifies by its last token needs to know which one is not padding. And everything
    padded to one fixed length spends most of its time on nothing.

    ## What to do
    Pass on the `attention_mask` that the tokenizer returns. Set `tokenizer.padding_side = "right"` for training, and
    `model.config.pad_token_id = tokenizer.pad_token_id`. Pad in the collate function (`DataCollatorWithPadding`,
    `padding=True`), to the longest row of each batch.

    ## Known limits
    Models that take no mask (averages of words, convolutions, recurrent ones) are left to `padding-invariance`, and
    labels at padding to `supervised-tokens`. A causal model with padding on the right needs no mask.

    ## References
    - https://huggingface.co/docs/transformers/pad_truncation
    - https://huggingface.co/docs/transformers/troubleshooting#incorrect-output-when-padding-tokens-arent-masked
    """
    findings = [*mask_findings(ids, trials)]
    findings += _no_pad_id(ids, trials)
    if not findings:
        findings += _left(ids, trials, target.model)
        findings += _idle_row(ids, target.model)
    yield from findings
    yield from padding_share(ids, max_padding, min_saved, static=_needs_static_shapes(target))


def _no_pad_id(ids: TokenIds, trials: PadTrials | None) -> Iterator[Finding]:
    """A classifier of whole rows that does not know which id is padding."""
    effect = trials.no_pad_id if trials is not None else None
    if effect is None or not effect.matters:
        return
    raises = effect.now == float("inf")
    said = (
        "the step raises on more than one row"
        if raises
        else "it pools a place of padding instead of the text"
    )
    value = (
        "tokenizer.pad_token_id" if ids.codec is not None and "pad" in ids.codec.roles else str(ids.pad or 0)
    )
    yield fail(
        f"`config.pad_token_id` is not set, and the model classifies rows by their last token: {said}",
        where="config.pad_token_id",
        hint=f"set `model.config.pad_token_id = {value}`",
    )


def _left(ids: TokenIds, trials: PadTrials | None, model: torch.nn.Module) -> Iterator[Finding]:
    """Padding on the left of a model that counts positions from the first place.

    A model of one's own may mean it so, as recommenders do whose last place is the latest item.
    """
    effect = trials.left if trials is not None else None
    if effect is not None and effect.matters:
        make = warn if any(hasattr(module, "config") for module in model.modules()) else note
        yield make(
            f"{int((ids.starts > 0).sum()):,} of {len(ids.ids):,} rows are padded on the left, and the outputs of "
            f"their text differ by {effect.now:.2g} standard deviations from those without padding: the model counts "
            "from the first place (its positions, or the token that it pools)",
            where=ids.path,
            hint='set `tokenizer.padding_side = "right"`, or pass `position_ids` that count from the first token',
            difference=effect.now,
        )


def _idle_row(ids: TokenIds, model: torch.nn.Module) -> Iterator[Finding]:
    """A `padding_idx` that is a real token: its vector never learns."""
    if ids.pad is None or hasattr(model, "config"):
        return
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None]
    largest = max(int(row.max()) for row in ids.ids)
    for table in tables:
        idle = table.padding_idx
        if idle == ids.pad or table.num_embeddings <= largest:
            continue
        rows = [
            number
            for number, (row, start, stop) in enumerate(zip(ids.ids, ids.starts, ids.stops, strict=True))
            if bool((row[start:stop] == idle).any())
        ]
        if len(rows) > 0.05 * len(ids.ids):
            name = next(name for name, module in model.named_modules() if module is table)
            yield warn(
                f"`{name}` has `padding_idx={idle}` and the padding is {ids.pad}: id {idle} stands in the text of "
                f"{len(rows):,} of {len(ids.ids):,} rows and its vector never learns",
                where=name,
                hint=f"make the embedding with `padding_idx={ids.pad}`",
                rows=len(rows),
            )


def _needs_static_shapes(target: Target) -> bool:
    return target.device.type == "xla" or hasattr(target.model, "_orig_mod")


class _Encoder(torch.nn.Module):
    """Logits ``[batch, 2]`` from one layer of attention over words, and a mean over the masked places."""

    def __init__(self, rows: int = 40, width: int = 32) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(rows, width)
        self.attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = torch.nn.Linear(width, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mixed, _ = self.attention(hidden, hidden, hidden, key_padding_mask=keep == 0)
        weights = keep.unsqueeze(-1).float()
        logits: torch.Tensor = self.head(((hidden + mixed) * weights).sum(1) / weights.sum(1))
        return logits


def _rows(shortest: int = 3, longest: int = 9) -> list[tuple[list[int], int]]:
    """64 different rows: of ids under 20 for class 0, of others for class 1."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(64):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        low = 1 if number % 2 == 0 else 20
        rows.append((torch.randint(low, low + 19, (length,), generator=generator).tolist(), number % 2))
    return rows


def _loader(mask: str | None, width: int | None = None, longest: int = 9) -> DataLoader[Any]:
    def collate(picked: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
        wide = width or max(len(row) for row, _ in picked)
        ids = torch.tensor([row + [0] * (wide - len(row)) for row, _ in picked])
        batch = {"input_ids": ids, "labels": torch.tensor([label for _, label in picked])}
        masks = {"right": (ids != 0).long(), "ones": torch.ones_like(ids), "inverted": (ids == 0).long()}
        return batch if mask is None else {**batch, "attention_mask": masks[mask]}

    data: Any = _rows(longest=longest)
    return DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)


def good() -> Target:
    return Target(_Encoder(), _loader("right"), torch.nn.CrossEntropyLoss())


def bad_mask_dropped() -> Target:
    return Target(_Encoder(), _loader(None), torch.nn.CrossEntropyLoss())


def bad_mask_all_ones() -> Target:
    return Target(_Encoder(), _loader("ones"), torch.nn.CrossEntropyLoss())


def bad_mask_inverted() -> Target:
    return Target(_Encoder(), _loader("inverted"), torch.nn.CrossEntropyLoss())


def bad_fixed_length() -> Target:
    return Target(_Encoder(), _loader("right", width=128), torch.nn.CrossEntropyLoss())
