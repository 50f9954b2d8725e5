"""What the dependence probe measures, and that it leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugkit import Target
from debugkit.evidence import Deadline, Ledger
from debugkit.probes.dependence import Dependence
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp


def look(target: Target) -> Dependence:
    with Sandbox(target) as sandbox:
        found = Ledger({Target: target, Sandbox: sandbox, Deadline: Deadline(None)}).get(Dependence)
        assert isinstance(found, Dependence)
        return found


class Tagger(nn.Module):
    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.embed, self.places, self.mix = nn.Embedding(20, 8), nn.Embedding(12, 8), nn.Linear(8, 24)
        self.norm, self.drop, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 20)
        self.causal = causal

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids) + self.places.weight[: ids.shape[1]]
        q, k, v = self.mix(h).chunk(3, -1)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        logits: torch.Tensor = self.head(self.drop(self.norm(h.transpose(1, 2)).transpose(1, 2)))
        return logits


def language_model(causal: bool = True, size: int = 8) -> Target:
    ids = torch.randint(0, 20, (32, 11), generator=torch.Generator().manual_seed(0))
    rows = [(part[:, :-1], part[:, 1:]) for part in torch.split(ids, size)]
    return Target(Tagger(causal), rows, lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten()))


def test_what_does_not_depend_does_not_move_at_all() -> None:
    found = look(language_model())
    assert found.next_step
    assert found.mixing is not None
    assert found.mixing.change == 0.0
    assert found.span is not None
    assert found.span.before.tolist() == [0.0] * found.span.start
    assert float(found.span.change[found.span.start]) > 0.1


def test_a_leak_is_seen_at_every_earlier_place() -> None:
    found = look(language_model(causal=False))
    assert found.span is not None
    assert found.span.repeated
    assert bool((found.span.before > 1e-3).all())


def test_the_model_is_as_it_was() -> None:
    target = language_model()
    before = copy.deepcopy(target.model.state_dict())
    state, modes = torch.get_rng_state(), [m.training for m in target.model.modules()]
    look(target)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in target.model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in target.model.state_dict().items())
    assert all(p.grad is None for p in target.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in target.model.modules())


@pytest.mark.parametrize(("size", "cost"), [(2, 3.0), (8, 1.5), (16, 1.0)])
def test_two_passes_over_a_few_rows(size: int, cost: float) -> None:
    found = look(language_model(size=size))
    assert 2 * found.rows / size <= cost


def test_parameters_that_are_zero_are_nudged_and_put_back() -> None:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    found = look(Target(model, blobs(), nn.CrossEntropyLoss()))
    assert found.nudged == 2
    assert found.own is not None
    assert found.own > 0
    assert not bool(model[2].weight.any())
