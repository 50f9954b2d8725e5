"""Calls that are played again with other values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from debugkit.tracing.flow import Flow


def recorded(step: Any, *given: torch.Tensor) -> tuple[Flow, torch.Tensor]:
    """A flow over tensors called ``a``, ``b``, ... and the result of a step on them."""
    flow = Flow({name: [tensor] for name, tensor in zip("abc", given, strict=False)})
    with flow:
        return flow, step(*given)


def test_a_replay_gives_what_a_run_with_the_new_values_gives() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    one, other = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 0, 1])
    flow, loss = recorded(lambda y: F.cross_entropy(logits * 2, y), one)
    torch.testing.assert_close(
        flow.tape.replay({id(one): other}).of(loss), F.cross_entropy(logits * 2, other)
    )
    torch.testing.assert_close(loss, F.cross_entropy(logits * 2, one))


def test_writes_in_place_are_replayed_on_what_was_there_before() -> None:
    logits = torch.randn(4, 3, requires_grad=True)

    def step(y: torch.Tensor) -> torch.Tensor:
        target = torch.full((4, 3), 0.1)
        target[torch.arange(4), y] = 0.8
        total = logits.pow(2).mean()
        total += -(target * logits.log_softmax(1)).sum()
        return total

    one, other = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 0, 1])
    flow, loss = recorded(step, one)
    for labels in (other, one):
        torch.testing.assert_close(flow.tape.replay({id(one): labels}).of(loss), step(labels))


def test_a_replay_does_not_run_the_layers_again() -> None:
    calls = []
    layer = torch.nn.Embedding(3, 2)
    layer.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.tensor([0, 1])
    flow, loss = recorded(lambda a: layer(a).sum() + a.float().sum(), ids)
    again = flow.tape.replay({id(ids): torch.tensor([2, 2])}).of(loss)
    assert len(calls) == 1
    torch.testing.assert_close(again - loss, torch.tensor(3.0))


def test_one_call_can_be_changed_alone() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.zeros(3)
    flow, loss = recorded(lambda b: (x - b).pow(2).sum() + (x - b).sum(), y)
    first = flow.meetings[0]
    changed = {first.entry: (x, torch.ones(3))}
    assert loss.item() == 6
    assert flow.tape.replay({}, changed).of(loss).item() == 3


def test_precision_and_grad_mode_are_those_of_the_recording() -> None:
    x, y = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)

    def step(b: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = x @ b
        with torch.no_grad():
            scale = (x * b).abs().mean()
        return (mixed.float() * scale).sum()

    flow, loss = recorded(step, y)
    again = flow.tape.replay({id(y): y.clone()}).of(loss)
    assert torch.equal(again, loss)
    (slope,) = torch.autograd.grad(again, x, retain_graph=True)
    (wanted,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(slope, wanted)
