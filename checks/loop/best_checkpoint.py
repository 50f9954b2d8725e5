"""A "best" state that is the live one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import LoopRecord
from debugkit.testing import blobs, mlp, watched


@check
def best_checkpoint(loop: LoopRecord) -> Iterator[Finding]:
    """A state that was kept as a snapshot shares its tensors with the model, which trained on.

    ## Why is this bad?
    `best = model.state_dict()` copies nothing: its tensors are the weights themselves. Whatever was best, `best`
    holds the weights of the last step, and loading it back changes nothing.

    ## What to do
    `best = copy.deepcopy(model.state_dict())`, or save it to a file at once.

    ## Known limits
    Seen is a state that `state_dict()` returned while watched, and that is loaded or saved after more steps.

    ## References
    - https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html
    """
    if not loop.states_taken:
        raise Unavailable("no model gave its `state_dict` while the loop was watched")
    for state in loop.states:
        what = "loaded back" if state.used == "loaded" else "saved"
        tell = warn if state.taken_at == 0 and state.used == "saved" else fail
        yield tell(
            f"a state of `{state.model}` taken after step {state.taken_at} ({state.location}) was {what} after step "
            f"{state.used_at}: it shares its tensors with the model, so it holds the weights of step {state.used_at}",
            where=state.model,
            location=state.used_location,
            hint="take a copy: `copy.deepcopy(model.state_dict())`",
            taken=state.taken_at,
            used=state.used_at,
        )
    yield note(
        f"{loop.states_taken} states taken in {loop.steps} steps, {len(loop.states)} used later share the live weights",
        taken=loop.states_taken,
    )


def _train(snapshot: bool, *, shallow: bool = False) -> None:
    model, loader = mlp(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    best, state = float("inf"), model.state_dict()
    for x, y in [*loader] * 4:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        if loss.item() < best:
            best = loss.item()
            state = copy.deepcopy(model.state_dict()) if snapshot else model.state_dict()
            state = dict(state) if shallow else state
        optimizer.step()
    model.load_state_dict(state)


def good() -> LoopRecord:
    return watched(lambda: _train(snapshot=True))


def bad_alias() -> LoopRecord:
    return watched(lambda: _train(snapshot=False))


def bad_shallow_copy() -> LoopRecord:
    return watched(lambda: _train(snapshot=False, shallow=True))
