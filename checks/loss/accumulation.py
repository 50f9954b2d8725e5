"""Micro-batches of unequal size that count alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.probes.accumulated_gradients import AccumulatedGradients


@check
def accumulation(
    accumulated: AccumulatedGradients,
    *,
    max_error: Annotated[
        float,
        Field(
            gt=0,
            description="how far the accumulated gradient may be from that of all samples, relative to it",
        ),
    ] = 0.05,
) -> Iterator[Finding]:
    """Gradient accumulation weighs the targets of small micro-batches more than those of large ones.

    Only with more than one batch per optimizer step. The targets that count are counted in the first batches. Where
    their numbers differ, the loss of two groups of samples is held against the loss of both together, which shows
    whether it is a mean over targets or over samples, and the gradients of a few samples tell how far off the
    accumulated gradient is.

    ## Why is this bad?
    The mean of means is not the mean. A loss that is averaged over the tokens of each micro-batch gives a token in a
    short micro-batch more weight than one in a long micro-batch, so training with accumulation differs from training
    with the large batch that it stands for, and prefers short samples.

    ## What to do
    Sum the loss over targets and divide by their number in all micro-batches of the step. With `Trainer`, let the
    model or `compute_loss` take `num_items_in_batch` and divide by it. Batches of similar lengths help too.

    ## Known limits
    A loop of your own is taken to divide each loss by the number of micro-batches; what it does can't be seen. Numbers
    of targets are taken from the first four batches (more where these are small).

    ## References
    - https://unsloth.ai/blog/gradient
    - https://github.com/huggingface/transformers/issues/34191
    """
    found = accumulated
    window = f"{found.steps} micro-batches"
    if found.scale is not None and not found.shared and not 0.9 < found.scale < 1.1:
        message = (
            f"the losses of {window} are added up with a weight of {found.scale / found.steps:.3g} each: the gradient is "
            f"{_times(found.scale)} too {'large' if found.scale > 1 else 'small'}"
        )
        if not found.rescaled:
            yield warn(message, hint=_UNSCALED, factor=found.scale)
            return
        yield note(f"{message}; the optimizer makes up for it, gradient clipping does not", hint=_UNSCALED)
    if found.shared:
        yield note(f"each loss is divided by the number of targets in all {window}: accumulating is exact")
        return
    few, many = min(found.counts), max(found.counts)
    seen = f"{few:,} to {many:,} targets in the first {len(found.counts)} batches"
    if found.error is None:
        if len(found.counts) < 2:
            raise Unavailable("there is only one batch to accumulate")
        raise Unavailable(f"not judged: {seen}, and what the loss is a mean over could not be learned")
    if found.mean == "samples":
        yield note(f"the loss is a mean over samples, so that {window} count alike ({seen})")
    elif found.mean == "nothing":
        yield note(f"every target weighs the same in the loss of {window}, however many there are ({seen})")
    elif found.error == 0:
        yield note(f"accumulating {window} is exact: they hold equally many targets ({few:,})")
    elif found.error <= max_error:
        yield note(
            f"accumulating {window} moves the gradient by {found.error:.1%} ({seen})", error=found.error
        )
    else:
        yield warn(
            f"the loss is a mean over the targets of each micro-batch ({seen}), so that a target weighs up to "
            f"{many / max(few, 1):.2g} times as much as another: the gradient of {window} is {found.error:.0%} off "
            "that of all their samples at once",
            hint="sum the loss over targets and divide by their number in all micro-batches of the step "
            "(`num_items_in_batch` with `Trainer`)",
            error=found.error,
        )


_UNSCALED = "divide the loss by `num_items_in_batch`, or set `loss_is_scaled_for_ga = False` on the trainer"


def _times(factor: float) -> str:
    return f"{max(factor, 1 / factor):.3g} times"


class _Tagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.embed(ids)).transpose(1, 2)
        return scores


def _sentences(shortest: int) -> DataLoader[Any]:
    """Rows of 12 tags, of which only the first ones count."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (64, 12), generator=generator)
    lengths = torch.randint(0, 2, (64, 1), generator=generator) * (12 - shortest) + shortest
    tags = (ids % 4).masked_fill(torch.arange(12) >= lengths, -100)
    return DataLoader(TensorDataset(ids, tags), batch_size=2, shuffle=True)


def good() -> Target:
    return Target(_Tagger(), _sentences(12), torch.nn.CrossEntropyLoss(), accumulation_steps=4)


def good_mean_over_samples() -> Target:
    def loss(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(scores, tags, reduction="none")
        return (each.sum(1) / (tags != -100).sum(1)).mean()

    return Target(_Tagger(), _sentences(1), loss, accumulation_steps=4)


def bad_mean_over_tokens() -> Target:
    return Target(_Tagger(), _sentences(1), torch.nn.CrossEntropyLoss(), accumulation_steps=4)
