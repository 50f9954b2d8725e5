"""What accumulating micro-batches makes of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target, Unavailable
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.accumulated_gradients import AccumulatedGradients
from debugkit.sandbox import Sandbox


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.embed(ids)).transpose(1, 2)
        return scores


def sentences(batch_size: int, shortest: int = 1) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (48, 12), generator=generator)
    lengths = torch.where(torch.arange(48)[:, None] % 4 == 0, 12, shortest)
    tags = (ids % 4).masked_fill(torch.arange(12) >= lengths, -100)
    order = torch.randperm(48, generator=generator)
    return DataLoader(TensorDataset(ids[order], tags[order]), batch_size=batch_size)


def collect(
    loss: Callable[..., Any], data: DataLoader[Any], steps: int = 4, **settings: Any
) -> AccumulatedGradients:
    target = Target(Tagger(), data, loss, accumulation_steps=steps, **settings)
    with Sandbox(target) as sandbox:
        found = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(AccumulatedGradients)
    assert isinstance(found, AccumulatedGradients)
    return found


def over_samples(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    each = F.cross_entropy(scores, tags, reduction="none")
    return (each.sum(1) / (tags != -100).sum(1)).mean()


def by_hand(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    kept = tags != -100
    chosen = scores.log_softmax(1).gather(1, tags.clamp_min(0)[:, None])[:, 0]
    return -(chosen * kept).sum() / kept.sum()


def summed(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores, tags, reduction="sum") / 100


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("loss", "mean"), [(F.cross_entropy, "targets"), (over_samples, "samples"), (summed, "nothing")]
)
def test_what_the_loss_is_a_mean_over(loss: Callable[..., Any], mean: str, batch_size: int) -> None:
    if batch_size == 1 and mean == "samples":
        mean = "targets"  # with one sample in a batch there is no difference, and neither is its weight
    found = collect(loss, sentences(batch_size))
    assert found.mean in (mean, "unknown") if batch_size == 1 else found.mean == mean


def test_a_loss_written_out_by_hand() -> None:
    assert collect(by_hand, sentences(4)).mean == "targets"


def test_the_error_is_that_of_the_real_gradients() -> None:
    torch.manual_seed(0)
    data = sentences(2)
    found = collect(F.cross_entropy, data)
    assert found.error is not None
    assert 0.05 < found.error < 1.5


def test_equal_numbers_need_no_run() -> None:
    found = collect(F.cross_entropy, sentences(4, shortest=12))
    assert (found.error, found.mean) == (0.0, "unknown")


def test_one_batch_per_step() -> None:
    with pytest.raises(Unavailable, match="accumulation_steps"):
        collect(F.cross_entropy, sentences(4), steps=1)


def test_the_rest_of_an_epoch_is_no_small_micro_batch() -> None:
    ids = torch.randint(0, 20, (20, 12), generator=torch.Generator().manual_seed(0))
    found = collect(F.cross_entropy, DataLoader(TensorDataset(ids, ids % 4), batch_size=8))
    assert found.counts == (96, 96)
    assert found.error == 0.0


@pytest.mark.parametrize(
    ("kind", "rescaled"), [(torch.optim.AdamW, True), (torch.optim.Adam, True), (torch.optim.SGD, False)]
)
def test_optimizers_that_make_up_for_the_scale(kind: Any, rescaled: bool) -> None:
    model = Tagger()
    found = collect(F.cross_entropy, sentences(4), optimizer=kind(model.parameters(), lr=1e-3))
    assert found.rescaled is rescaled
