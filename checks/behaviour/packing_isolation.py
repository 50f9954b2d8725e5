"""Packed rows in which one document sees another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.probes.dependence import Dependence


@check
def packing_isolation(dependence: Dependence) -> Iterator[Finding]:
    """A document of a packed row sees the one before it.

    Rows count as packed where the model's call says so: positions that start again inside a row, cumulative lengths,
    a mask that numbers documents, or one that falls into blocks. Tokens of the first document are exchanged; the
    outputs of the later ones must stay as they are.

    ## Why is this bad?
    Positions that start again do not hide anything: with an ordinary causal mask a document attends to all that comes
    before it in the row, and unrelated text becomes its context. The model learns to expect that, and results
    depend on what was packed together.

    ## What to do
    In transformers, leave `attention_mask` out where `position_ids` start again, and use an attention implementation
    that reads them (FlashAttention; `sdpa` and `eager` in newer versions). Elsewhere pass a mask that falls into
    blocks, `cu_seqlens` or a `BlockMask`. Recurrent and state-space models have to be told where to forget.

    ## Known limits
    Rows packed without saying so, with an end-of-text token between documents, are common in pretraining and not
    judged.

    ## References
    - https://github.com/huggingface/transformers/issues/31629
    - https://huggingface.co/blog/packing-with-FA2
    """
    span = dependence.span
    if span is None or span.documents is None:
        raise Unavailable(
            "nothing in the model's call says that rows hold several documents (positions that start again, cumulative "
            "lengths, a mask in blocks)"
        )
    others = span.other_documents
    if not len(others):
        raise Unavailable("no output stands for a token of a later document")
    count = int(span.documents.max()) + 1
    moved = float(others.max())
    if moved > dependence.tolerance and span.repeated:
        yield fail(
            f"`{span.declared}` says that a row holds {count} documents, and other tokens of the first move the outputs of "
            f"later ones by up to {moved:.2g}: documents that were packed together see each other",
            where=span.declared,
            hint="leave `attention_mask` out of packed batches, or pass a mask that falls into blocks (`cu_seqlens`, "
            "`BlockMask`)",
            change=moved,
            documents=count,
        )
        return
    yield note(
        f"other tokens of the first of {count} documents leave the {len(others)} outputs of later ones as they are",
        change=moved,
        documents=count,
    )


class _Packed(nn.Module):
    """A language model whose attention may be kept inside of documents."""

    def __init__(self, isolated: bool, vocabulary: int = 12, width: int = 16) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.mix, self.head = nn.Linear(width, 3 * width), nn.Linear(width, vocabulary)
        self.isolated = isolated

    def forward(self, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids) + self.place(position_ids)
        q, k, v = self.mix(h).chunk(3, dim=-1)
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None]
        if self.isolated:
            document = (position_ids == 0).cumsum(1)
            mask = mask & (document[:, :, None] == document[:, None, :])
        logits: torch.Tensor = self.head(
            h + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        )
        return logits


def _rows(isolated: bool) -> Target:
    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        ids, positions = batch
        logits = model(ids[:, :-1], positions[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    ids = torch.randint(0, 12, (32, 11), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(4), torch.arange(7)]).expand(32, -1)
    batches = list(zip(torch.split(ids, 8), torch.split(positions, 8), strict=True))
    return Target(_Packed(isolated), batches, training_step=step)


def good() -> Target:
    return _rows(isolated=True)


def bad_positions_alone() -> Target:
    return _rows(isolated=False)
