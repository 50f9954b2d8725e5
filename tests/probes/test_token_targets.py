"""What positions are trained to predict, read from gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target, Unavailable
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.token_targets import TokenTargets
from debugkit.sandbox import Sandbox

IDS = torch.randint(2, 40, (32, 12), generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A recurrent language model in one of several shapes."""

    def __init__(self, shape: str = "plain", both_ways: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(40, 16)
        self.memory = nn.GRU(
            40 if shape == "one-hot" else 16, 16, batch_first=True, bidirectional=both_ways, dropout=0.0
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(32 if both_ways else 16, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.shape == "one-hot":
            vectors = F.one_hot(ids, 40).float()
        elif self.shape == "parameter":
            vectors = self.embedding.weight[ids]
        else:
            vectors = self.embedding(ids)
        if self.shape == "shifts inside":
            vectors = F.pad(vectors, (0, 0, 1, -1))
        scores = self.head(self.drop(self.memory(vectors)[0]))
        if self.shape == "flat":
            return scores.flatten(0, 1)
        return scores.transpose(1, 2) if self.shape == "classes first" else scores


def cross_entropy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if scores.ndim == 2:
        return F.cross_entropy(scores, y.flatten())
    return F.cross_entropy(scores if scores.shape[1] == 40 else scores.transpose(1, 2), y)


def measured(target: Target) -> TokenTargets:
    with Sandbox(target) as sandbox:
        found: TokenTargets = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline()}).get(
            TokenTargets
        )
    return found


def pairs(shift: int) -> DataLoader[Any]:
    x = IDS[:, 1:10]
    return DataLoader(TensorDataset(x, IDS[:, 1 + shift : 10 + shift]), batch_size=16)


@pytest.mark.parametrize("shape", ["plain", "flat", "classes first", "one-hot", "parameter"])
@pytest.mark.parametrize("shift", [-1, 0, 1, 2])
def test_the_shift_is_found_in_any_shape(shape: str, shift: int) -> None:
    found = measured(Target(Model(shape), pairs(shift), cross_entropy))
    assert found.shift == shift
    assert found.causal
    assert found.reach == 0
    assert found.sees_answer is (shift <= 0)


def test_a_model_that_shifts_inside_sees_one_token_less() -> None:
    found = measured(Target(Model("shifts inside"), pairs(0), cross_entropy))
    assert (found.shift, found.reach, found.sees_answer, found.causal) == (0, -1, False, True)


def test_a_model_that_reads_both_ways_is_not_causal() -> None:
    found = measured(Target(Model(both_ways=True), pairs(1), cross_entropy))
    assert (found.shift, found.causal, found.sees_answer, found.local) == (1, False, True, True)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, y: F.cross_entropy(s.transpose(1, 2), y, label_smoothing=0.1),
        lambda s, y: F.nll_loss(s.log_softmax(-1).transpose(1, 2), y, reduction="sum"),
        lambda s, y: -s.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean(),
        lambda s, y: F.cross_entropy(s.transpose(1, 2), y, reduction="none")[:, 3:].mean(),
    ],
)
def test_any_form_of_cross_entropy_will_do(loss: Any) -> None:
    found = measured(Target(Model(), pairs(1), loss))
    assert found.shift == 1
    assert torch.equal(found.targets[:, 3:-1], found.ids[:, 4:])


def test_positions_that_do_not_count_have_no_target() -> None:
    y = IDS[:, 1:].clone()
    y[:, :4] = -100
    found = measured(Target(Model(), DataLoader(TensorDataset(IDS[:, :-1], y), batch_size=16), cross_entropy))
    assert bool((found.targets[:, :4] == -1).all())
    assert bool((found.targets[:, 4:] >= 0).all())


def test_sequences_with_time_first() -> None:
    class TimeFirst(Model):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids.T).transpose(0, 1).reshape(-1, 40)

    batch = (IDS.T[:-1].contiguous(), IDS.T[1:].reshape(-1))
    found = measured(Target(TimeFirst(), [batch], nn.CrossEntropyLoss()))
    assert found.shift == 1
    assert tuple(found.ids.shape) == (32, 11)


def test_a_decoder_is_told_from_its_encoder() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 16)
            self.encoder = nn.GRU(16, 16, batch_first=True)
            self.decoder = nn.GRU(16, 16, batch_first=True)
            self.head = nn.Linear(16, 40)

        def forward(self, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            _, state = self.encoder(self.embedding(ids))
            given = F.pad(y[:, :-1], (1, 0), value=1)
            return self.head(self.decoder(self.embedding(given), state)[0])

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(*batch).transpose(1, 2), batch[1])

    loader = DataLoader(TensorDataset(IDS, IDS.clone()), batch_size=16)
    found = measured(Target(Translator(), loader, training_step=step))
    assert (found.shift, found.decoder, found.sees_answer) == (1, True, False)


def test_rows_that_repeat_themselves_are_not_judged() -> None:
    ids = torch.tensor([[2, 3]]).repeat(32, 6)
    loader = DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=16)
    assert measured(Target(Model(), loader, cross_entropy)).shift is None


@pytest.mark.parametrize(
    "target",
    [
        lambda: Target(nn.Linear(4, 2), [(torch.randn(8, 4), torch.arange(8) % 2)], nn.CrossEntropyLoss()),
        lambda: Target(Model(), pairs(1), lambda s, y: s.square().mean()),
        lambda: Target(Model(), pairs(1), lambda s, y: s.detach().sum().requires_grad_()),
        lambda: Target(Model(), [("a", "b")], training_step=lambda m, b: m(IDS).sum()),
        lambda: Target(Model(), [(IDS, IDS)], training_step=lambda m, b: m(IDS.float()).sum()),
    ],
)
def test_other_losses_and_batches_are_left_alone(target: Any) -> None:
    with pytest.raises(Unavailable):
        measured(target())


def test_the_model_stays_as_it_was() -> None:
    model = Model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured(Target(model, pairs(1), cross_entropy))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
