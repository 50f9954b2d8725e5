"""Where the values of a batch go, and where reshaped elements come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from debugkit.tracing.flow import Flow, crosses

X, Y = torch.randn(4, 3), torch.randn(4)


def test_a_layer_ends_what_is_followed_and_a_loss_does_not() -> None:
    layer = torch.nn.Linear(3, 1)
    with Flow({"x": [X], "y": [Y]}) as flow:
        out = layer(X * 2).squeeze(1)
        loss = F.mse_loss(out, Y + 1)
    assert flow.fed == {"x"}
    assert flow.sources(out) == frozenset()
    assert flow.sources(loss) == {"y"}
    assert [call.sources for call in flow.calls] == [{"y"}]
    assert [met.name for met in flow.meetings] == ["mse_loss"]


def test_shapes_alone_are_no_source() -> None:
    with Flow({"y": [Y]}) as flow:
        assert not flow.sources([torch.zeros_like(Y), Y.new_ones(3), torch.ones(len(Y))])
        assert flow.sources(Y.long().unsqueeze(0)) == {"y"}


def test_values_that_leave_torch_are_noticed() -> None:
    with Flow({"y": [Y]}) as flow:
        float(Y.mean())
    assert flow.escaped == {"y"}


def test_writing_to_a_view_loses_the_trail() -> None:
    with Flow({"y": [Y]}) as flow:
        torch.zeros(2, 4)[0].copy_(Y)
    assert flow.lost == {"y"}


def test_a_loss_that_raises_is_kept() -> None:
    with Flow({"y": [Y]}) as flow, pytest.raises(IndexError):
        F.cross_entropy(torch.randn(4, 3, requires_grad=True), torch.full((4,), 7))
    assert flow.refused is not None
    assert flow.refused.name == "cross_entropy"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((4, 1), (4,), True),
        ((4, 1), (1, 4), True),
        ((4, 3), (4, 1), False),
        ((4, 3), (3,), False),
        ((4,), (), False),
    ],
)
def test_crossing(one: tuple[int, ...], other: tuple[int, ...], expected: bool) -> None:
    assert crosses(one, other) is expected


def test_places_follow_views_and_slices() -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    with Flow({"x": [x]}) as flow:
        moved = x.transpose(1, 2)[:, 1:].reshape(-1, 3)
        picked = x[torch.tensor([1, 0])]
    origin, places = flow.places.of(moved) or (None, None)
    assert origin is x
    assert places is not None
    assert torch.equal(x.flatten()[places.long()], moved)
    assert flow.places.origin(picked) is picked
