"""Graphs that are kept alive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, note, warn
from debugkit.probes.loop_record import LoopRecord
from debugkit.testing import blobs, mlp, watched


@check
def memory_growth(
    loop: LoopRecord,
    *,
    kept: Annotated[int, Field(ge=4, description="Graphs in a row that are alive at once.")] = 16,
) -> Iterator[Finding]:
    """The graphs of past batches are kept alive, so memory grows with every step.

    ## Why is this bad?
    `total += loss` and `losses.append(loss)` keep the whole chain of operations of every batch. In validation,
    where no backward frees them, all activations stay too. The run slows down, then ends out of memory, hours in.

    ## What to do
    Keep numbers: `total += loss.item()`, `losses.append(loss.detach())`; validate in `with torch.no_grad():`.

    ## Known limits
    Looked at are the ends of the graphs: the loss and the few operations before it.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/faq.html#my-model-reports-cuda-runtime-error-2-out-of-memory
    """
    graphs = [graph for graph in loop.graphs if graph.made]
    if not graphs:
        raise Unavailable("no graph was built while the loop was watched")
    for graph in graphs:
        if graph.run >= kept and (graph.alive == graph.run):
            phase = "validation" if graph.evaluation else "training"
            yield warn(
                f"the graphs of the latest {graph.run} {phase} batches are all still alive: something keeps their "
                "losses or outputs, and memory grows with every batch",
                location=graph.location,
                hint="keep `loss.item()` or `loss.detach()` instead of `loss`",
                alive=graph.alive,
            )
    most = max(graph.alive for graph in graphs)
    yield note(f"at most {most} graphs alive of {sum(graph.made for graph in graphs)}", alive=most)


def _train(keep: bool) -> None:
    model, loader = mlp(), blobs(samples=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    total = torch.zeros(())
    for x, y in [*loader, *loader, *loader]:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total = total + (loss if keep else loss.item())
    _train.kept = total  # type: ignore[attr-defined]


def good() -> LoopRecord:
    return watched(lambda: _train(keep=False))


def bad_total() -> LoopRecord:
    return watched(lambda: _train(keep=True))
