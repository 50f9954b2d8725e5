"""Validation in train mode, training in eval mode, gradients on or off in the wrong place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import DataPass, LoopRecord, Mode, OptimizerLog
from debugkit.testing import blobs, watched

_CERTAIN = 3


@check
def mode_switches(
    loop: LoopRecord,
    *,
    rare: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="Stretches between optimizer steps with a call in train mode and without gradients, as a "
            "share of the steps, up to which these calls are taken for validation.",
        ),
    ] = 0.34,
) -> Iterator[Finding]:
    """Validation runs in train mode, training in eval mode, or with gradients where there should be none.

    A pass over data that is never trained on is taken for validation. Only models that act differently in the two
    modes count.

    ## Why is this bad?
    Validation in train mode measures a model with random units missing, and BatchNorm learns from the validation
    data. A `model.eval()` that is never undone trains the rest of the run without dropout and with frozen
    statistics. Gradients that stay switched off after validation end training with an error, or silently.
    Validation with gradients keeps every activation: twice the memory, for nothing.

    ## What to do
    Begin each epoch's training with `model.train()`, and its validation with `model.eval()` and
    `with torch.no_grad():`.

    ## Known limits
    Validation on tensors that come from no loader is told from training by how rarely it happens. Functional
    dropout is seen in the user's own modules only.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/autograd.html#locally-disable-grad-doc
    """
    if not loop.optimizers:
        raise Unavailable("no optimizer was made or used while the loop was watched")
    trained = {read.data for read in loop.passes if read.backwards}
    evaluations = [read for read in loop.passes if read.data not in trained and read.model_calls]
    dependent = next((log.mode_dependent for log in loop.optimizers if log.mode_dependent), ())
    findings = [
        *_in_train_mode(evaluations if trained else [], dependent, loop),
        *_in_eval_mode(loop),
        *_with_graphs(evaluations if trained else []),
        *_gradients_off(loop),
    ]
    if not any(finding.level == "fail" for finding in findings):
        findings += _quietly_in_train_mode(loop, rare)
    yield from findings
    modes = {mode for log in loop.optimizers for _, mode in log.modes}
    seen = f"{len(evaluations)} validation passes over loaders" if trained else "no loader"
    yield note(f"trained in {' and '.join(sorted(modes)) or 'no'} mode, {seen}", passes=len(evaluations))


def _in_train_mode(
    evaluations: list[DataPass], dependent: tuple[str, ...], loop: LoopRecord
) -> Iterator[Finding]:
    wrong = [
        read
        for read in evaluations
        if all(mode == "train" for (mode, _), _ in read.model_calls)
        and (read.after_step or loop.finished)
        and sum(times for _, times in read.model_calls) >= min(2, read.batches)
    ]
    if wrong and dependent and loop.steps:
        data = next((log for log in loop.data if log.index == wrong[-1].data), None)
        yield fail(
            f"validation runs in train mode, in {len(wrong)} of {len(evaluations)} passes over "
            f"{data.name if data else 'other data'}: {_some(dependent)} as in training, so the figures are not the "
            "model's",
            where=dependent[0].partition(" ")[0],
            location=data.location if data else None,
            hint="call `model.eval()` before validating, and `model.train()` after it",
            passes=len(wrong),
        )


def _in_eval_mode(loop: LoopRecord) -> Iterator[Finding]:
    for log in loop.optimizers:
        if not log.modes or not log.mode_dependent:
            continue
        since, mode = log.modes[-1]
        lasted = log.steps - since + 1
        before: set[Mode] = {earlier for _, earlier in log.modes[:-1]}
        if mode != "eval" or lasted < _CERTAIN:
            continue
        if not before:
            yield fail(
                f"all {log.steps} steps of `{log.name}` trained in eval mode: {_some(log.mode_dependent)} as in "
                "evaluation",
                where=log.mode_dependent[0].partition(" ")[0],
                hint="call `model.train()` before training; `from_pretrained` returns models in eval mode",
                steps=log.steps,
            )
        elif _evaluated(log, since):
            yield fail(
                f"`{log.name}` trains in eval mode since step {since}, after {since - 1} steps in train mode: "
                f"{_some(log.mode_dependent)} as in evaluation",
                where=log.mode_dependent[0].partition(" ")[0],
                hint="call `model.train()` after each validation",
                since=since,
            )


def _evaluated(log: OptimizerLog, step: int) -> bool:
    """Whether the model was called without gradients just before a step."""
    return any(step - 2 <= at < step for at in log.evaluated_at)


def _with_graphs(evaluations: list[DataPass]) -> Iterator[Finding]:
    wrong = [
        read
        for read in evaluations
        if read.graphs >= 2 and all(grad for (_, grad), _ in read.model_calls) and read.finished
    ]
    if wrong:
        batches = sum(read.batches for read in wrong)
        yield warn(
            f"validation keeps gradients: {batches} batches in {len(wrong)} passes built a graph that no backward "
            "used, which takes the memory of training",
            hint="validate in `with torch.no_grad():`",
            batches=batches,
        )


def _gradients_off(loop: LoopRecord) -> Iterator[Finding]:
    if loop.without_graph >= _CERTAIN:
        yield fail(
            f"{loop.without_graph} backward passes began at a loss without a graph, with gradients switched off: they "
            "reach no weight",
            hint="leave `torch.no_grad()` before training goes on; `set_grad_enabled(False)` stays until undone",
            backwards=loop.without_graph,
        )
    if loop.error and "does not require grad" in loop.error and not loop.grad_enabled:
        yield fail(
            f"gradients were switched off when the model was called last, so `backward` failed after {loop.steps} "
            "steps",
            hint="leave `torch.no_grad()` before training goes on; `set_grad_enabled(False)` stays until undone",
            steps=loop.steps,
        )


def _quietly_in_train_mode(loop: LoopRecord, rare: float) -> Iterator[Finding]:
    for calls in loop.quiet_calls:
        if calls.mode_dependent and calls.steps >= _CERTAIN and calls.stretches <= rare * calls.steps:
            yield warn(
                f"`{calls.model}` was called {calls.train_calls} times in train mode with gradients off: if that was "
                f"validation, {_some(calls.mode_dependent)} as in training",
                where=calls.mode_dependent[0].partition(" ")[0],
                hint="call `model.eval()` before validating, and `model.train()` after it",
                calls=calls.train_calls,
            )


def _some(dependent: tuple[str, ...]) -> str:
    more = f" and {len(dependent) - 1} more" if len(dependent) > 1 else ""
    return f"`{dependent[0]}`{more} {'act' if more else 'acts'}"


def _train(mistake: str | None) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 2)
    )
    loader, held_out = blobs(), blobs(samples=48, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        if mistake != "eval never undone" or not epoch:
            model.train()
        for x, y in loader:
            optimizer.zero_grad()
            with torch.set_grad_enabled(mistake != "left off" or not epoch):
                loss = torch.nn.functional.cross_entropy(model(x), y)
                loss = loss if loss.requires_grad else loss.requires_grad_()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if mistake != "no eval":
            model.eval()
        with torch.set_grad_enabled(mistake == "graphs"):
            for x, _ in held_out:
                model(x)


def good() -> LoopRecord:
    return watched(lambda: _train(None))


def bad_validation_in_train_mode() -> LoopRecord:
    return watched(lambda: _train("no eval"))


def bad_eval_never_undone() -> LoopRecord:
    return watched(lambda: _train("eval never undone"))


def bad_gradients_left_off() -> LoopRecord:
    return watched(lambda: _train("left off"))


def bad_graphs_in_validation() -> LoopRecord:
    return watched(lambda: _train("graphs"))
