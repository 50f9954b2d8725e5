"""Trainable parameters that get no gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.gradients import Gradients
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.model_state import ModelState
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.blame import advise, blame, describe
from debugkit.tracing.source import is_library_class
from debugkit.weights.parameters import amount, groups_of, places


@check
def missing_gradients(
    target: Target,
    state: ModelState,
    step: TrainingStep,
    gradients: Gradients,
    response: LossResponse | None,
) -> Iterator[Finding]:
    """A trainable parameter gets no gradient, so training leaves it as it is.

    One backward pass of the user's own step is traced; where a gradient is missing or zero, two more batches
    with other seeds are run before anything is said.

    ## Why is this bad?
    Nothing crashes: the rest of the model trains and the loss falls, while a part stays at its initial
    values. Common causes are a module that is built but never called, a `detach()`, `.data` or `.item()` on
    the way to the loss, a `no_grad` block, a non-differentiable operation such as `argmax`, layers kept in a
    plain list, a layer that is created inside `forward`, and reentrant gradient checkpointing whose inputs
    need no gradient.

    ## What to do
    Remove the cut that the message names. If a parameter is unused on purpose, remove the module or freeze it
    with `requires_grad_(False)`, so that the optimizer and distributed training know.

    ## Known limits
    Experts, LayerDrop and other branches that only run on some batches are a note, and so are parts that an
    installed package itself leaves out (a pooler that a head does not use, a vision tower given text only). A
    gradient that is zero only because another parameter starts at zero (LoRA's B, a zero-initialised gate) is
    a note too.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/autograd.html
    - https://github.com/huggingface/peft/issues/1142
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    trainable = {name: p for name, p in target.model.named_parameters() if p.requires_grad}
    if not trainable:
        yield fail(
            f"nothing trains: all {len(state.requires_grad)} parameters have `requires_grad=False`",
            hint="call `requires_grad_(True)` on the parts that should train",
            parameters=len(state.requires_grad),
        )
        return
    if not state.grad_enabled:
        yield fail(
            "gradients are switched off where training starts, so no backward pass is possible",
            hint="undo `torch.set_grad_enabled(False)`, or leave the `torch.no_grad()` block",
        )
    if step.is_cut_off:
        raise Unavailable("the loss leads to no parameter at all; see `loss-connected`")
    if _constant_output(step):
        raise Unavailable("the model's output is constant by construction; see `logits-vs-probs`")
    lost = [name for name in gradients.missing if name not in gradients.conditional]
    yield from _lost(target.model, step, gradients, lost)
    yield from _strangers(step)
    if math.isfinite(step.loss) and not (response is not None and response.cancelled):
        yield from _zero(target.model, step, gradients)
    if some := [*gradients.conditional, *gradients.sometimes]:
        yield note(
            f"{len(some)} parameters only run on some batches (such as `{some[0]}`): experts or dropped layers",
            parameters=len(some),
        )
    if gradients.zero_at_start:
        yield note(
            f"{len(gradients.zero_at_start)} parameters have no gradient only while others are zero at the start "
            f"(such as `{gradients.zero_at_start[0]}`)",
            parameters=len(gradients.zero_at_start),
        )
    if not lost and not gradients.zero:
        looked = f"{gradients.batches} batch" + ("es" if gradients.batches > 1 else "")
        yield note(
            f"all {len(trainable)} trainable parameters get a gradient ({looked})", parameters=len(trainable)
        )


def _lost(
    model: torch.nn.Module, step: TrainingStep, gradients: Gradients, lost: list[str]
) -> Iterator[Finding]:
    silent = [name for name in lost if name in step.reached]
    if silent:
        groups = list(groups_of(model, silent))
        functions = ", ".join(f"`{name}`" for name in step.custom_functions) or "an autograd function"
        yield fail(
            f"no gradient reaches {amount(model, silent)} ({places(groups)}) though the loss depends on them: the "
            f"backward of {functions} returns none",
            where=groups[0].name,
            hint="return a gradient for every input that needs one in `backward`",
            parameters=len(silent),
        )
        lost = [name for name in lost if name not in step.reached]
    explained = blame(model, step.cuts, lost)
    for cut, names in explained:
        groups = list(groups_of(model, names))
        if cut.in_library and not cut.checkpointed:
            yield note(
                f"no gradient reaches {amount(model, names)} ({places(groups)}): the library's own code leaves the "
                f"graph (`{cut.op.strip('_')}` at {cut.location})",
                where=groups[0].name,
                parameters=len(names),
            )
            continue
        yield fail(
            f"no gradient reaches {amount(model, names)} ({places(groups)}): {describe(cut)}",
            where=groups[0].name,
            location=cut.location,
            hint=advise(cut),
            parameters=len(names),
        )
    rest = set(lost).difference(*(names for _, names in explained))
    for group in groups_of(model, rest):
        if library := _library_that_leaves_out(model, step, group.names[0]):
            yield note(
                f"`{group.name}` gets no gradient ({amount(model, group.names)}): `{library}` itself does not use it "
                "for this head or these inputs",
                where=group.name,
                hint="freeze it with `requires_grad_(False)`; distributed training needs "
                "`find_unused_parameters=True` otherwise",
                parameters=len(group.names),
            )
            continue
        ran = group.is_module and any(group.contains(name) for calls in gradients.calls for name in calls)
        told = (
            "it runs, but its output does not reach the loss"
            if ran
            else "it is never used on the way to the loss"
        )
        yield fail(
            f"`{group.name}` gets no gradient in {gradients.batches} batches ({amount(model, group.names)}): {told}",
            where=group.name,
            hint=("let its output reach the loss" if ran else "use it in `forward`, or remove it")
            + "; if it is unused on purpose, freeze it with `requires_grad_(False)`",
            parameters=len(group.names),
        )


def _library_that_leaves_out(model: torch.nn.Module, step: TrainingStep, name: str) -> str | None:
    """The class of an installed package whose own code leaves a parameter unused, if it is not the user's doing."""
    module = step.left_out_by(model, name)
    if module is None and not step.own_loss:
        return None
    kind = type(model.get_submodule(module or ""))
    return kind.__name__ if is_library_class(kind) else None


def _strangers(step: TrainingStep) -> Iterator[Finding]:
    for created in dict.fromkeys(stranger.created for stranger in step.strangers if stranger.created):
        shapes = [list(s.shape) for s in step.strangers if s.created == created]
        yield fail(
            f"{len(shapes)} parameters are created inside a forward pass (shape {shapes[0]}): every call starts from "
            "new random values and nothing trains them",
            location=created,
            hint="create the layer in `__init__` and call it in `forward`",
            parameters=len(shapes),
        )
    hidden = [s for s in step.strangers if s.place and not s.created]
    if hidden:
        yield fail(
            f"{len(hidden)} parameters that the loss depends on are not in `model.parameters()`, so no optimizer "
            f"trains them (`{hidden[0].place}`, shape {list(hidden[0].shape)})",
            where=hidden[0].place,
            hint="hold the modules in `nn.ModuleList` / `nn.ModuleDict`, not in a plain list or dict",
            parameters=len(hidden),
        )


def _zero(model: torch.nn.Module, step: TrainingStep, gradients: Gradients) -> Iterator[Finding]:
    shifts = [name for name in gradients.zero if _is_shift(model, gradients, name)]
    if shifts:
        yield note(
            f"the loss does not change when a constant is added at `{shifts[0]}`, so its gradient is zero"
        )
    zero = [name for name in gradients.zero if name not in shifts]
    if not zero:
        return
    groups = list(groups_of(model, zero))
    told = f"the gradient of {amount(model, zero)} is exactly zero ({places(groups)})"
    if step.flat_calls:
        flat = step.flat_calls[0]
        yield fail(
            f"{told}: `{flat.op}` on the way to the loss has a zero gradient everywhere",
            where=groups[0].name,
            location=flat.location,
            hint="use a straight-through estimator or a soft version of the operation",
            parameters=len(zero),
        )
    elif step.own_loss and is_library_class(type(model)) and len(zero) < len(step.gradients) / 2:
        yield note(
            f"{told}: `{type(model).__name__}` does not let these inputs act on it",
            where=groups[0].name,
            parameters=len(zero),
        )
    else:
        yield warn(
            f"{told} in {gradients.batches} batches: nothing is learned there",
            where=groups[0].name,
            hint="follow these values to the loss: look for units that are dead or saturated (a ReLU that never "
            "fires), for a factor of zero, and for an input that is all zeros",
            parameters=len(zero),
        )


def _is_shift(model: torch.nn.Module, gradients: Gradients, name: str) -> bool:
    """Whether a bias has a zero gradient while a weight beside it has one: a shift that the loss cancels."""
    module, dot, leaf = name.rpartition(".")
    beside = {other for other, _ in model.named_parameters() if other.startswith(module + dot)} - {name}
    return leaf == "bias" and bool(beside - {*gradients.zero, *gradients.missing})


def _constant_output(step: TrainingStep) -> bool:
    """Whether a softmax over one unit makes every gradient zero."""
    return any(
        producer.op in ("softmax", "log_softmax") and producer.length == 1
        for call in step.loss_calls
        if call.connected
        for producer in call.producers
    )


class _Detached(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        self.head = torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x).detach())
        return logits


class _PlainList(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.nn.Linear(8, 8)]
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.hidden[0](x).relu())
        return logits


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_zero_initialised_head() -> Target:
    model = mlp()
    torch.nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())


def bad_unused_layer() -> Target:
    model = mlp()
    model.add_module("spare", torch.nn.Linear(4, 4))
    return Target(model, blobs(), training_step=_without_spare)


def bad_detached_encoder() -> Target:
    return Target(_Detached(), blobs(), torch.nn.CrossEntropyLoss())


def bad_layers_in_a_plain_list() -> Target:
    return Target(_PlainList(), blobs(), torch.nn.CrossEntropyLoss())


def _without_spare(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    for name, layer in model.named_children():
        x = x if name == "spare" else layer(x)
    return torch.nn.functional.cross_entropy(x, y)
