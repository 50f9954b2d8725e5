"""Train and validation loss that part ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, note, warn
from debugkit.probes.loop_record import Evaluation, LoopRecord
from debugkit.testing import mlp, watched

_APART = 3


@check
def overfitting(
    loop: LoopRecord,
    *,
    rises: Annotated[int, Field(ge=2, description="Validations since the best one, all of them worse.")] = 3,
    margin: Annotated[
        float, Field(gt=0, description="Rise of the validation loss since its best, as a share.")
    ] = 0.1,
) -> Iterator[Finding]:
    """The validation loss rises while the training loss still falls.

    ## Why is this bad?
    From the best validation on, the model learns its training samples by heart: every further epoch makes it worse
    on new ones, and the weights at the end are not the ones to keep.

    ## What to do
    Stop early and keep the best checkpoint; use more data, augmentation, dropout, weight decay or a smaller model.

    ## Known limits
    The validation loss is seen where a module or a loss function of torch gives it: not one that is written out.

    ## References
    - https://docs.pytorch.org/ignite/generated/ignite.handlers.early_stopping.EarlyStopping.html
    """
    streams: dict[tuple[object, ...], list[Evaluation]] = {}
    for one in loop.evaluations:
        streams.setdefault((one.location, one.data, one.model), []).append(one)
    found = [*filter(_is_validation, streams.values())]
    if not found:
        raise Unavailable("fewer than two validations gave a loss that could be seen")
    for evaluations in found:
        yield from _judge(loop, evaluations, rises, margin)


def _is_validation(evaluations: list[Evaluation]) -> bool:
    """Whether losses on batches that no loader gave come rarely, as those of a validation do."""
    if evaluations[0].location is None:
        return len(evaluations) >= 2
    apart = evaluations[-1].after_step - evaluations[0].after_step
    return len(evaluations) >= 2 and apart >= _APART * (len(evaluations) - 1)


def _judge(loop: LoopRecord, evaluations: list[Evaluation], rises: int, margin: float) -> Iterator[Finding]:
    best = min(range(len(evaluations)), key=lambda index: evaluations[index].loss)
    since, last = len(evaluations) - 1 - best, evaluations[-1]
    low = evaluations[best]
    before, after = _train_loss(loop, low.after_step), _train_loss(loop, last.after_step)
    falls = before is not None and after is not None and after < before
    if since >= rises and low.loss > 0 and last.loss > (1 + margin) * low.loss and falls:
        yield warn(
            f"the validation loss rose from {low.loss:.4g} after step {low.after_step} to {last.loss:.4g} after step "
            f"{last.after_step}, while the training loss fell from {before:.4g} to {after:.4g}",
            hint=f"keep the weights of step {low.after_step}, and stop when validation no longer improves",
            best=low.loss,
            last=last.loss,
            validations=len(evaluations),
        )
    yield note(
        f"validation loss {evaluations[0].loss:.4g} to {last.loss:.4g} in {len(evaluations)} validations"
    )


def _train_loss(loop: LoopRecord, step: int, window: int = 20) -> float | None:
    """The mean of the training losses just before a step, of the line that computes most of them."""
    log = max(loop.losses, key=lambda log: len(log.values), default=None)
    if log is None:
        return None
    near = [value for value, at in zip(log.values, log.steps, strict=False) if step - window <= at < step]
    return sum(near) / len(near) if near else None


def _train(samples: int, epochs: int, *, functional: bool = False) -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(8, generator=generator)

    def loader(size: int) -> torch.utils.data.DataLoader[tuple[torch.Tensor, ...]]:
        x = torch.randn(size, 8, generator=generator)
        y = ((x @ centre + 3 * torch.randn(size, generator=generator)) > 0).long()
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)

    model, train, held_out = mlp(hidden=128), loader(samples), loader(64)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for x, y in held_out:
                (torch.nn.functional.cross_entropy if functional else criterion)(model(x), y)


def good() -> LoopRecord:
    return watched(lambda: _train(samples=512, epochs=3))


def bad() -> LoopRecord:
    return watched(lambda: _train(samples=32, epochs=40))


def bad_functional_loss() -> LoopRecord:
    return watched(lambda: _train(samples=32, epochs=40, functional=True))
