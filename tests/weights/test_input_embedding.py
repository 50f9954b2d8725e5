"""Which table a model looks its token ids up in, and whether it is trained."""

from __future__ import annotations

import torch
from torch import nn

from debugkit.weights.input_embedding import input_embedding, is_trained


def test_the_table_that_the_model_names_comes_first() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(100, 8)
            self.words = nn.Embedding(20, 8)

        def get_input_embeddings(self) -> nn.Module:
            return self.words

    model = Named()
    assert input_embedding(model) is model.words.weight
    assert input_embedding(nn.Sequential(model)) is model.positions.weight


def test_a_table_must_have_a_row_for_every_id() -> None:
    model = nn.Sequential(nn.Embedding(10, 8))
    assert input_embedding(model, 9) is model[0].weight
    assert input_embedding(model, 10) is None


def test_independent_draws_are_not_trained_and_shared_directions_are() -> None:
    drawn = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    assert is_trained(drawn) is False
    assert is_trained(drawn + 1) is True
    assert is_trained(drawn[:4]) is None
    assert is_trained(torch.zeros(200, 32)) is None
    assert is_trained(None) is None
