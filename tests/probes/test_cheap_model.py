"""The cheap model of the data, and whether batches keep inputs and labels together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.errors import Unavailable
from debugkit.probes.batches import Batches
from debugkit.probes.cheap_model import CheapModel
from debugkit.probes.echo import Echo
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.pairing import Pairing
from debugkit.probes.samples import Samples
from debugkit.probes.stream import EvalStream, TrainStream
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs


def cheap(target: Target, **options: Any) -> CheapModel:
    with Sandbox(target) as sandbox:
        samples = Samples.collect(target, TrainStream.collect(target, sandbox))
        held_out = None
        if target.eval_loader is not None:
            held_out = EvalSamples.collect(target, EvalStream.collect(target, sandbox))
        return CheapModel.collect(target, samples, held_out, **options)


def batches(*columns: Any, size: int = 16, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*columns), batch_size=size, shuffle=True, **options)


CE = nn.CrossEntropyLoss()


def test_separated_clusters_are_told() -> None:
    model = cheap(Target(nn.Linear(8, 3), blobs(90, classes=3), CE))
    assert (model.accuracy, model.task, model.majority) == (1.0, "classes", pytest.approx(1 / 3))
    assert model.skill > 10


def test_values_are_told() -> None:
    x = torch.randn(80, 3)
    model = cheap(Target(nn.Linear(3, 1), batches(x, x.sum(1, keepdim=True)), nn.MSELoss()))
    assert model.explained > 0.99


def test_copies_of_a_sample_count_once() -> None:
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    model = cheap(Target(nn.Linear(4, 2), batches(x.repeat(2, 1), y.repeat(2)), CE))
    assert (len(model.train.answers), model.train.repeated) == (40, 40)


def test_evaluation_samples_are_judged_too() -> None:
    target = Target(nn.Linear(8, 2), blobs(80), CE, eval_loader=blobs(40))
    model = cheap(target)
    assert model.predicted is not None
    assert model.evaluation is not None
    assert (model.predicted.argmax(1) == model.evaluation.codes).all()


def test_evaluation_of_another_shape_is_left_out() -> None:
    target = Target(nn.Linear(8, 2), blobs(80), CE, eval_loader=blobs(40, features=5))
    assert cheap(target).evaluation is None


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (batches(torch.randn(20, 3), torch.arange(20) % 2), "too few"),
        (batches(torch.ones(64, 3), torch.arange(64) % 2), "no numbers"),
        (batches(torch.randn(64, 3), torch.zeros(64).long()), "1 classes"),
        (batches(torch.randn(64, 3), torch.full((64,), 1.5)), "same value"),
        (batches(torch.randn(64, 3)), "no labels"),
    ],
)
def test_there_is_no_model_of_what_can_not_be_told(loader: Any, reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        cheap(Target(nn.Linear(3, 2), loader, CE))


def test_the_last_part_of_a_batch_is_a_guess() -> None:
    x, y, group = torch.randn(64, 3), torch.arange(64) % 2, torch.arange(64) % 4

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    assert not cheap(Target(nn.Linear(3, 2), batches(x, y, group), training_step=step)).certain
    assert cheap(Target(nn.Linear(3, 2), batches(x, y), training_step=step)).certain
    with pytest.raises(Unavailable, match="can't be told"):
        cheap(Target(nn.Linear(3, 2), batches(x, y, torch.rand(64)), training_step=step))


def pair_up(target: Target) -> Pairing:
    with Sandbox(target) as sandbox:
        stream = TrainStream.collect(target, sandbox)
        first = Batches.collect(stream)
        return Pairing.collect(target, Samples.collect(target, stream), first)


def collated(swap: bool) -> DataLoader[Any]:
    rows = [(torch.full((n % 5 + 1,), n), torch.tensor(n % 3)) for n in range(48)]

    def collate(samples: list[Any]) -> Any:
        order = sorted(samples, key=lambda sample: -len(sample[0]))
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in order], batch_first=True)
        return ids, torch.stack([y for _, y in (samples if swap else order)])

    return DataLoader(rows, batch_size=12, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]


def test_labels_that_stay_behind_when_inputs_are_sorted() -> None:
    good, bad = (pair_up(Target(nn.Linear(3, 3), collated(swap))) for swap in (False, True))
    assert good.compared >= 8
    assert not good.swapped
    assert bad.compared >= 8
    assert bad.swapped


def test_random_labels_prove_nothing() -> None:
    class Redrawn(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> Any:
            return torch.full((3,), float(index)), torch.randint(2, ())

    with pytest.raises(Unavailable, match="each time"):
        pair_up(Target(nn.Linear(3, 2), DataLoader(Redrawn(), batch_size=32, shuffle=True), CE))


def test_a_loader_that_tells_no_samples_can_not_be_compared() -> None:
    with pytest.raises(Unavailable, match="does not tell"):
        pair_up(Target(nn.Linear(3, 2), [(torch.randn(8, 3), torch.arange(8) % 2)] * 2, CE))


class Steps(nn.Module):
    """A series in, a series out: step by step, or all from one code."""

    def __init__(self, coded: bool) -> None:
        super().__init__()
        self.coded = coded
        self.body = nn.GRU(2, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, last = self.body(x)
        if self.coded:
            states = last[0][:, None].expand(-1, x.shape[1], -1)
        out: torch.Tensor = self.head(states)
        return out


@pytest.mark.parametrize("coded", [True, False])
def test_an_echo_is_no_autoencoder(coded: bool) -> None:
    x = torch.randn(32, 6, 2)
    target = Target(Steps(coded), batches(x, x), nn.MSELoss())
    with Sandbox(target) as sandbox:
        stream = TrainStream.collect(target, sandbox)
        first = Batches.collect(stream)
        step = TrainingStep.collect(target, sandbox, first)
        echo = Echo.collect(target, sandbox, Samples.collect(target, stream), step)
    assert echo.copies is not coded
    assert echo.future is coded
