"""A cache changes what a model says: generation is not what training taught."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, fail, note
from debugkit.probes.cached_steps import CachedSteps

_MORE = 10


@check
def cache_parity(
    steps: CachedSteps,
    *,
    tolerance: Annotated[
        float,
        Field(
            gt=0,
            description="largest difference between scores with and without the cache, in standard deviations of the "
            "scores; 50 times as much in half precision",
        ),
    ] = 1e-3,
) -> Iterator[Finding]:
    """A cache changes what a model says: generation is not what training taught.

    Up to 32 tokens of one row are read at once, and again with the last ones one by one and the cache of those before:
    by `generate` where the model has it, made to choose the row's own tokens, else by the cache that its `forward`
    gives and takes. The scores have to be the same.

    ## Why is this bad?
    Training reads whole rows and never touches the cache. A position that starts at 0 again, a mask of the wrong
    width or keys that are stored before they are rotated show in no loss and no metric but in the text that the
    trained model writes.

    ## What to do
    Count positions from the length of the cache, give the mask `[new tokens, old and new tokens]`, and store keys and
    values as attention uses them.

    ## Known limits
    Caches that a module keeps in its own attributes are not seen. Rows longer than 32 tokens, where a window begins to
    slide, are cut.

    ## References
    - https://github.com/huggingface/transformers/issues/19045
    - https://github.com/pytorch/pytorch/issues/103082
    """
    most = tolerance * steps.tolerance / 1e-3
    how = "`generate`" if steps.generate else "the model's own cache"
    if steps.without > most and not steps.length_matters:
        yield _other_start(steps)
    elif steps.without > most:
        yield note(
            f"the scores of the first {steps.read} tokens differ by {steps.without:.2g} standard deviations from those "
            "of the same tokens in the longer row: they depend on what follows, so that a cache can't be compared",
            difference=steps.without,
        )
    elif steps.difference > max(most, _MORE * steps.without):
        yield fail(
            f"scores with {how} differ by {steps.difference:.2g} standard deviations from those of the whole row, from "
            f"position {steps.first} on, after {steps.read} tokens without a difference",
            where=f"position {steps.first}",
            hint="compare positions, mask and stored keys of a cached step with those of a full pass: positions count "
            "from the length of the cache",
            difference=steps.difference,
        )
    else:
        yield note(
            f"scores of {steps.steps} tokens read with {how} differ by {steps.difference:.1g} standard deviations from "
            f"those of the whole row",
            difference=steps.difference,
        )


def _other_start(steps: CachedSteps) -> Finding:
    """Generation gives the beginning of a row other inputs than training."""
    said = (
        f"`generate` reads the first {steps.read} tokens otherwise than a pass as in training: their scores differ by "
        f"{steps.without:.2g} standard deviations before any cache is used"
    )
    if not steps.own:
        return note(f"{said} (the positions that it counts, or a cache that is not exact by design)")
    return fail(
        said,
        where="prepare_inputs_for_generation",
        hint="make `prepare_inputs_for_generation` pass the positions and the mask that training uses",
        difference=steps.without,
    )


class _Writer(torch.nn.Module):
    """Scores ``[batch, length, 20]`` from one layer of causal attention, with the keys read so far as a cache."""

    def __init__(self, offset: bool) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(20, 16)
        self.places = torch.nn.Embedding(32, 16)
        self.mix = torch.nn.Linear(16, 48)
        self.head = torch.nn.Linear(16, 20)
        self.offset = offset

    def forward(
        self, ids: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        before = 0 if past is None else past[0].shape[1]
        places = torch.arange(ids.shape[1]) + (before if self.offset else 0)
        hidden = self.tokens(ids) + self.places(places)
        query, key, value = self.mix(hidden).chunk(3, -1)
        if past is not None:
            key, value = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
        seen = torch.ones(ids.shape[1], key.shape[1], dtype=torch.bool).tril(before)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.head(hidden + mixed), (key, value)


def _next_token(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    scores, _ = model(batch[:, :-1])
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())


def _target(offset: bool) -> Target:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 20, (64, 1), generator=generator)
    rows = (start + torch.arange(12) * torch.randint(1, 4, (64, 1), generator=generator)) % 20
    data: Any = rows
    return Target(_Writer(offset), DataLoader(data, batch_size=16, shuffle=True), training_step=_next_token)


def good() -> Target:
    return _target(offset=True)


def bad_positions_start_again() -> Target:
    return _target(offset=False)
