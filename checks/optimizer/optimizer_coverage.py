"""What the optimizer holds, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.optimizer_parameters import OptimizerParameters, Orphan
from debugkit.probes.optimizer_step import OptimizerStep
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.weights.freshness import model_is_fresh
from debugkit.weights.parameters import Group, amount, groups_of, places

_REBUILD = "build the optimizer after the last change to the model, from its trainable parameters"
_SMALL_PART = 0.2


@check
def optimizer_coverage(
    target: Target, held: OptimizerParameters, step: TrainingStep | None, moves: OptimizerStep | None
) -> Iterator[Finding]:
    """The optimizer and the model do not agree on what is trained.

    ## Why is this bad?
    An optimizer keeps the tensors that it was given. A head that is swapped, an embedding that is resized or an
    adapter that is added afterwards is never updated: it stays random while the rest learns around it, and the loss
    still falls. The same goes for a loss with parameters of its own (a temperature, class centres), for an optimizer
    that holds only frozen tensors, and for a scheduler that drives an optimizer which no longer trains anything.

    ## What to do
    Build the optimizer, and then the scheduler, after the last change to the model. Set `requires_grad=False` on what
    is meant to stay as it is.

    ## Known limits
    A parameter that gets no gradient is left to `missing-gradients`. What another living optimizer holds is a note,
    and so is a network of its own that the model's output does not depend on (a discriminator, a critic): it is
    usually trained by a second optimizer. A trained body that is left out as a whole while a small new part is
    trained is a warning, since that is how features are extracted without freezing them.

    ## References
    - https://docs.pytorch.org/docs/stable/optim.html
    - https://discuss.pytorch.org/t/84911
    """
    findings = [
        *_scheduler(held),
        *_doubled(held),
        *_nothing_trains(target, held),
    ]
    if not any(finding.measured.get("held") == 0 for finding in findings):
        findings += _left_out(target, held, step, moves)
    yield from findings
    if not any(finding.level in ("warn", "fail") for finding in findings):
        frozen = f", {len(held.frozen)} of them frozen" if held.frozen else ""
        extra = f", and {held.extra} of the training step's own" if held.extra else ""
        yield note(
            f"the optimizer holds {len(held.groups)} parameters of the model{frozen}{extra}",
            parameters=len(held.groups),
        )


def _scheduler(held: OptimizerParameters) -> Iterator[Finding]:
    if held.drives is False:
        yield fail(
            "the scheduler drives another optimizer: the learning rates of the one that trains never change",
            where="scheduler",
            hint="build the scheduler from the optimizer that training steps, after it",
        )


def _doubled(held: OptimizerParameters) -> Iterator[Finding]:
    if held.doubled:
        yield fail(
            f"the optimizer holds {_examples(held.doubled)} twice: every step updates it twice",
            where=held.doubled[0],
            hint="give each tensor to one parameter group, once; tied weights must be one `Parameter`",
            parameters=len(held.doubled),
        )


def _nothing_trains(target: Target, held: OptimizerParameters) -> Iterator[Finding]:
    trainable = sum(p.requires_grad for p in target.model.parameters())
    own = [name for name in held.groups if not name.startswith("loss_fn.")]
    if not trainable or held.copies or len(own) > len(held.frozen) or held.extra:
        return
    told = (
        f"all {len(own)} of the model's tensors in it are frozen"
        if own
        else "it holds none of the model's tensors"
    )
    if not own and held.elsewhere:
        return
    yield fail(
        f"the optimizer trains nothing of the model: {told}, and the {trainable} trainable ones are not in it",
        where="optimizer",
        hint=_REBUILD,
        held=0,
        trainable=trainable,
    )


def _left_out(
    target: Target, held: OptimizerParameters, step: TrainingStep | None, moves: OptimizerStep | None
) -> Iterator[Finding]:
    missing = [n for n in held.missing if n not in held.elsewhere and _gets_gradient(n, step, moves)]
    own = [name for name in missing if not name.startswith("loss_fn.")]
    if held.elsewhere:
        yield note(
            f"{len(held.elsewhere)} parameters are in another optimizer", parameters=len(held.elsewhere)
        )
    if held.copies:
        yield note("the optimizer holds copies of the parameters, in another precision or flattened")
        return
    stale = [orphan for orphan in held.orphans if not orphan.owned]
    apart = [] if stale else _networks_apart(target, held, step, own)
    if apart:
        yield note(
            f"{places(apart)} is a network of its own that this optimizer does not train",
            where=apart[0].name,
        )
        own = [name for name in own if not any(name in group.names for group in apart)]
    if stale:
        yield from _stale(target, stale, own)
    elif own:
        yield _missing(target, held, own)
    if loss := [name for name in missing if name.startswith("loss_fn.")]:
        yield from _loss_parameters(target, loss)


def _stale(target: Target, stale: Sequence[Orphan], own: list[str]) -> Iterator[Finding]:
    shapes = ", ".join(" × ".join(map(str, orphan.shape)) or "scalar" for orphan in stale[:2])
    count = f"{len(stale)} tensor{'s' if len(stale) > 1 else ''}"
    told = f"the optimizer holds {count} ({shapes}{', …' if len(stale) > 2 else ''}) that the model does not have"
    if own:
        groups = list(groups_of(target.model, own))
        yield fail(
            f"{told}, and lacks {places(groups)} ({amount(target.model, own)}), which stays at its initial values: "
            "the model was changed after the optimizer was built",
            where=groups[0].name,
            hint=_REBUILD,
            stale=len(stale),
            parameters=len(own),
        )
    else:
        yield fail(
            f"{told} any more: its steps on them train nothing",
            where="optimizer",
            hint=_REBUILD,
            stale=len(stale),
        )


def _missing(target: Target, held: OptimizerParameters, own: list[str]) -> Finding:
    groups = list(groups_of(target.model, own))
    given = [n for n in held.groups if n not in held.frozen and not n.startswith("loss_fn.")]
    trained, left = _values(target, given), _values(target, own)
    told = (
        f"the optimizer lacks {places(groups)} ({amount(target.model, own)}), which training leaves as it is"
    )
    measured: dict[str, Any] = {"parameters": len(own), "held": len(given)}
    if trained < _SMALL_PART * (trained + left) and not model_is_fresh(target.model):
        return warn(
            f"{told}, though gradients are computed for it",
            where=groups[0].name,
            hint="freeze it with `requires_grad_(False)`, which saves its backward pass, or give it to the optimizer",
            **measured,
        )
    return fail(
        told,
        where=groups[0].name,
        hint=f"{_REBUILD}; freeze with `requires_grad_(False)` what is meant to stay as it is",
        **measured,
    )


def _loss_parameters(target: Target, names: list[str]) -> Iterator[Finding]:
    assert isinstance(target.loss_fn, torch.nn.Module)
    told = f"the optimizer lacks {_examples(names)}, {'a parameter' if len(names) == 1 else 'parameters'} of the loss"
    if any(p.ndim > 1 for p in target.loss_fn.parameters()) and not model_is_fresh(target.loss_fn):
        yield note(f"{told}, which stays as it is", where=names[0])
        return
    yield fail(
        f"{told}: it gets gradients and never moves",
        where=names[0],
        hint="give the optimizer `loss_fn.parameters()` too",
        parameters=len(names),
    )


def _gets_gradient(name: str, step: TrainingStep | None, moves: OptimizerStep | None) -> bool:
    """Whether a gradient was seen; ``True`` where nobody looked."""
    if name.startswith("loss_fn."):
        return moves is None or name in moves.loss_gradients
    return step is None or name not in step.gradients or not step.gradients[name].missing


def _networks_apart(
    target: Target, held: OptimizerParameters, step: TrainingStep | None, missing: list[str]
) -> list[Group]:
    """The model's parts that are left out as a whole and that its own output, if it has one, does not depend on."""
    given = {name.partition(".")[0] for name in held.groups}
    whole = [
        g
        for g in groups_of(target.model, missing)
        if g.is_module and "." not in g.name and g.name not in given
    ]
    if type(target.model).forward is torch.nn.Module.forward:
        return whole
    if step is None:
        return []
    if not step.module_calls.get(""):
        return whole
    return [
        group for group in whole if all(step.left_out_by(target.model, name) == "" for name in group.names)
    ]


def _values(target: Target, names: list[str]) -> int:
    return sum(target.model.get_parameter(name).numel() for name in names)


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:2])
    return shown + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def good() -> Target:
    model = mlp()
    return Target(
        model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(model.parameters())
    )


def good_frozen_body() -> Target:
    model = mlp()
    model[0].requires_grad_(False)
    return Target(
        model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(model[2].parameters())
    )


def bad_head_swapped_afterwards() -> Target:
    model = mlp(classes=5)
    optimizer = torch.optim.AdamW(model.parameters())
    model[2] = torch.nn.Linear(32, 2)
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=optimizer)


def bad_only_frozen() -> Target:
    model = mlp()
    model[0].requires_grad_(False)
    return Target(
        model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=torch.optim.AdamW(model[0].parameters())
    )


def bad_scheduler_of_another_optimizer() -> Target:
    model = mlp()
    first, second = (torch.optim.AdamW(model.parameters()) for _ in range(2))
    scheduler = torch.optim.lr_scheduler.StepLR(first, 10)
    return Target(model, blobs(), torch.nn.CrossEntropyLoss(), optimizer=second, scheduler=scheduler)
