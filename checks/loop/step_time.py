"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, note, warn
from debugkit.probes.loop_record import LoopRecord
from debugkit.testing import mlp, watched


@check
def step_time(
    loop: LoopRecord,
    *,
    share: Annotated[
        float, Field(gt=0, lt=1, description="Share of a step's time that waits for the next batch.")
    ] = 0.5,
    least_seconds: Annotated[
        float, Field(ge=0, description="Waiting time per step below which the share is no matter.")
    ] = 0.01,
    least_steps: Annotated[int, Field(ge=5, description="Timed steps before the share is judged.")] = 15,
) -> Iterator[Finding]:
    """Training waits for its data.

    ## Why is this bad?
    While the loop waits in `next(loader)`, the device does nothing. Half the time waiting is half the run.

    ## What to do
    Give the `DataLoader` workers (`num_workers`, `persistent_workers=True`), move slow work out of `__getitem__`, or
    store the data decoded.

    ## Known limits
    Time spent making batches outside of a `DataLoader` is not seen.

    ## References
    - https://docs.pytorch.org/docs/stable/data.html#multi-process-data-loading
    """
    times = loop.times
    if times is None or times.steps < least_steps:
        raise Unavailable(f"fewer than {least_steps} steps in a row were timed")
    waiting = times.waiting * times.seconds / times.steps
    if times.waiting > share and waiting > least_seconds:
        yield warn(
            f"{times.waiting:.0%} of the time of {times.steps} steps is spent waiting for the next batch "
            f"({waiting * 1000:.0f} ms per step)",
            hint="give the `DataLoader` workers, or make its items cheaper",
            waiting=times.waiting,
        )
    yield note(
        f"{times.seconds / times.steps * 1000:.3g} ms per step, {times.waiting:.0%} waiting for data",
        steps=times.steps,
    )


class _Items(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.seconds)
        return torch.full((8,), float(index % 2)), torch.tensor(index % 2)


def _train(seconds: float) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x, y in torch.utils.data.DataLoader(_Items(seconds), batch_size=4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def good() -> LoopRecord:
    return watched(lambda: _train(0.0))


def bad_slow_items() -> LoopRecord:
    return watched(lambda: _train(0.005))
