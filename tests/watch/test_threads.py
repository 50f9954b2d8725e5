"""Watches within watches, and training in other threads than the one that enters the watch."""

from __future__ import annotations

from threading import Thread

import torch

import debugkit
from debugkit.testing import blobs, mlp
from debugkit.watch.session import Watch


def train(
    model: torch.nn.Module, *, clear: bool = True, optimizer: torch.optim.Optimizer | None = None
) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in blobs():
        if clear:
            optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def in_thread(model: torch.nn.Module, *, clear: bool = True) -> None:
    thread = Thread(target=train, args=(model,), kwargs={"clear": clear})
    thread.start()
    thread.join()


def test_a_watch_within_a_watch_says_that_it_saw_nothing() -> None:
    before = torch.nn.Module.__call__
    with Watch(config={}) as outer, debugkit.watch(config={}, select="loop") as inner:
        train(mlp(), clear=False)
    assert inner.record.steps == 0
    assert any("another watch is at work" in notice for notice in inner.report.notices)
    assert all(result.status == "skip" for result in inner.report.results)
    assert outer.report["zero-grad"].status == "fail"
    assert torch.nn.Module.__call__ is before


def test_watches_that_overlap_leave_torch_as_it_was() -> None:
    before = torch.nn.Module.__call__
    one, two = Watch(config={}), Watch(config={})
    one.__enter__()
    two.__enter__()
    one.close()
    two.close()
    assert torch.nn.Module.__call__ is before
    with Watch(config={}) as later:
        train(mlp())
    assert later.record.steps > 0


def test_training_in_another_thread_is_watched() -> None:
    with Watch(config={}) as watch:
        in_thread(mlp(), clear=False)
    assert watch.report["zero-grad"].status == "fail"
    assert not watch.report.notices


def test_steps_in_other_threads_are_told() -> None:
    with Watch(config={}) as watch:
        train(mlp())
        steps = watch.record.steps
        in_thread(mlp(), clear=False)
    assert watch.record.steps == steps
    assert watch.report["zero-grad"].status == "pass"
    assert any(f"{steps} optimizer steps ran in another thread" in notice for notice in watch.report.notices)


def test_threads_that_share_parameters_are_not_judged_together() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with Watch(config={}) as watch:
        train(model, optimizer=optimizer)
        in_thread(model, clear=False)
    assert watch.recorder.fault is not None
    assert "several threads train the same parameters" in watch.recorder.fault
    assert watch.report["zero-grad"].status == "pass"
