"""A recorded step: what was computed from what, and parts of it run again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from debugkit.tracing.playback import Playback
from debugkit.tracing.recording import Recording


def test_values_are_followed_through_reshapes_to_where_they_come_from() -> None:
    layer = nn.Linear(3, 4)
    with Recording() as recording:
        scores = layer(torch.randn(2, 3))
        moved = scores.view(2, 2, 2)[:, 0].float().contiguous()
    key = recording.key(moved)
    assert recording.root(key) == recording.key(scores)
    maker = recording.maker(recording.root(key))
    assert maker is not None
    assert recording.is_weighted(maker)


def test_dropout_is_off() -> None:
    x = torch.ones(100)
    with Recording():
        assert torch.equal(F.dropout(x, 0.9), x)


def test_numbers_that_nobody_holds_are_told_from_those_that_are_kept() -> None:
    w = torch.ones(3, requires_grad=True)
    with Recording() as recording:
        kept = w.sum()
        w.mean()
    alive = [recording.value(key) is not None for key in recording.numbers]
    assert alive == [True, False]
    assert kept.requires_grad


def test_reading_a_number_is_seen() -> None:
    w = torch.ones(3, requires_grad=True)
    with Recording() as recording:
        total = w.sum()
        total.item()
        f"{total:.1f}"
    assert recording.readers[recording.key(total)] == ["item", "__format__"]


def test_an_activation_in_place_is_a_call_of_its_own() -> None:
    layer = nn.Linear(3, 4)
    with Recording() as recording:
        out = nn.ReLU(inplace=True)(layer(torch.randn(2, 3)))
    way = Playback(recording, [recording.key(out)])
    assert [op.name for op in way.ops] == ["relu"]
    (key,) = way.variables
    assert torch.equal(way({key: torch.full((2, 4), -3.0)})[0], torch.zeros(2, 4))


def test_a_way_is_played_again_with_other_raw_outputs() -> None:
    layer = nn.Linear(3, 4)
    with Recording() as recording:
        raw = layer(torch.randn(2, 3))
        out = 5 * torch.tanh(raw.detach() * 0 + raw)
    way = Playback(recording, [recording.key(out)])
    (key,) = (k for k, v in way.variables.items() if v.shape == (2, 4))
    again = way({key: torch.full((2, 4), 100.0)})[0]
    assert way.complete
    assert torch.allclose(again, torch.full((2, 4), 5.0))


def test_normalised_weights_are_variables_too() -> None:
    body, centres = nn.Linear(3, 4), nn.Parameter(torch.randn(5, 4))
    with Recording() as recording:
        out = F.normalize(body(torch.randn(2, 3))) @ F.normalize(centres).T
    way = Playback(recording, [recording.key(out)])
    assert sorted(tuple(value.shape) for value in way.variables.values()) == [(2, 4), (5, 4)]


def test_writing_into_a_buffer_is_followed() -> None:
    layer = nn.Linear(3, 2)
    with Recording() as recording:
        raw = layer(torch.randn(4, 3))
        out = torch.zeros(4, 3)
        out[:, :2] = raw.sigmoid()
        result = out * 2
    way = Playback(recording, [recording.key(result)])
    (key,) = way.variables
    again = way({key: torch.full((4, 2), 50.0)})[0]
    assert torch.allclose(again[:, :2], torch.full((4, 2), 2.0))


def test_a_custom_function_ends_the_way() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    layer = nn.Linear(3, 2)
    with Recording() as recording:
        out = Double.apply(layer(torch.randn(4, 3))).tanh()
    way = Playback(recording, [recording.key(out)])
    assert [op.name for op in way.ops] == ["tanh"]


def test_function_transforms_are_left_alone() -> None:
    with Recording() as recording:
        out = torch.func.vmap(lambda x: F.mse_loss(x, x))(torch.randn(4, 3))
    assert out.shape == (4,)
    assert not recording.measured
