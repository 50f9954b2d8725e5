"""Training flags that are wrong for the moment."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.eval_passes import EvalPasses
from debugkit.probes.model_state import ModelState
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._teachers import has_trainable_twin, is_frozen

_DROPOUTS = torch.nn.modules.dropout._DropoutNd
_DROPOUT_INSIDE = dict.fromkeys(
    ["scaled_dot_product_attention", "multi_head_attention_forward"], "dropout in "
)
_SWITCHES = {
    "dropout": "pass `training=self.training`, or use the `nn.Dropout` module",
    "scaled_dot_product_attention": "pass `dropout_p=p if self.training else 0.0`",
}


@check
def eval_mode(
    target: Target, state: ModelState, step: TrainingStep, passes: EvalPasses | None
) -> Iterator[Finding]:
    """A module is in train mode where it should be in eval mode, or the reverse.

    The flags are read as they were given, before anything is touched; then the model runs twice in eval mode.

    ## Why is this bad?
    In eval mode dropout is off and BatchNorm stops learning its statistics: training left in eval mode
    overfits and drifts. In the other direction, dropout that stays on in evaluation (`F.dropout` without
    `training=self.training`) makes every metric noisy and every prediction worse, BatchNorm that stays on
    makes a prediction depend on its neighbours in the batch, and a frozen backbone whose BatchNorm stays in
    train mode keeps changing.

    ## What to do
    Call `model.train()` before training and `model.eval()` before evaluating; transformers'
    `from_pretrained` returns models in eval mode. Put frozen parts in eval mode after `model.train()`. Pass
    `training=self.training` to functional dropout.

    ## Known limits
    Whether the evaluation loop calls `model.eval()` can only be seen while it runs. A loop that calls
    `model.train()` itself should hand the model over in train mode, or pass its `training_step`. Sampling in
    eval mode (a VAE, say) is a note, and so are random masks that are not scaled as dropout is: a masked
    language model draws them on purpose.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval
    - https://github.com/pytorch/pytorch/issues/86590
    - https://github.com/huggingface/transformers/issues/33844
    """
    findings = [
        *_as_given(target, state, step, passes),
        *_moving_frozen_norms(target, step),
        *_in_evaluation(target, step, passes),
    ]
    yield from findings
    if not any(finding.level in ("warn", "fail") for finding in findings):
        training = sum(step.training_after.values())
        agreement = "eval not compared"
        if passes:
            agreement = f"two eval passes {'agree' if passes.gap <= passes.tolerance else 'differ'}"
        yield note(f"{training} of {len(step.training_after)} modules train, {agreement}", modules=training)


def _as_given(
    target: Target, state: ModelState, step: TrainingStep, passes: EvalPasses | None
) -> Iterator[Finding]:
    model = type(target.model).__name__
    if step.set_modes:
        if not step.training_after[""]:
            yield fail(
                f"the training step switches `{model}` to eval mode, so it trains without dropout and with "
                "frozen statistics",
                where=model,
                hint="call `model.train()` in the step, after any evaluation",
            )
        return
    if not state.training[""]:
        sensitive = [name for name, module in target.model.named_modules() if depends_on_mode(module)]
        if passes is None or passes.mode_matters:
            yield fail(
                f"`{model}` is about to be trained in eval mode: "
                f"{_count(sensitive, 'module that acts', 'modules that act')} differently in training "
                f"({_examples(sensitive)}) would act as in evaluation",
                where=sensitive[0] if sensitive else model,
                hint="call `model.train()` before training; `from_pretrained` returns models in eval mode",
                modules=len(sensitive),
            )
        else:
            yield note(
                f"`{model}` is in eval mode, which changes nothing here: outputs are the same in train mode"
            )
        return
    for name in _topmost_in_eval(state):
        module = target.model.get_submodule(name)
        parameters = list(module.parameters())
        trainable = sum(parameter.requires_grad for parameter in parameters)
        sensitive = [inner for inner, part in module.named_modules() if depends_on_mode(part)]
        if sensitive and (trainable or not parameters) and step.module_calls.get(name, 1):
            yield warn(
                f"`{name}` is in eval mode while the rest trains, and its parameters are not frozen: "
                f"{_count(sensitive, 'module in it acts', 'modules in it act')} as in evaluation",
                where=name,
                hint=f"call `model.train()` before training, or freeze `{name}` if it is meant to stay as it is",
                trainable=trainable,
            )
        elif sensitive:
            yield note(f"`{name}` is frozen and kept in eval mode", where=name)


def _moving_frozen_norms(target: Target, step: TrainingStep) -> Iterator[Finding]:
    if not any(parameter.requires_grad for parameter in target.model.parameters()):
        return
    moving = [
        name
        for name, module in target.model.named_modules()
        if f"{name}.running_mean".lstrip(".") in step.moved_buffers and is_frozen(target.model, name)
    ]
    teachers = [name for name in moving if has_trainable_twin(target.model, name)]
    if teachers:
        yield note(
            f"{_count(teachers, 'normalisation layer', 'normalisation layers')} of a frozen copy of trainable layers, such as "
            f"an averaged teacher, follow the batches ({_examples(teachers)})",
            where=teachers[0],
        )
    if moving := [name for name in moving if name not in teachers]:
        yield fail(
            f"{_count(moving, 'frozen normalisation layer moves', 'frozen normalisation layers move')}: a training "
            f"step changed the running statistics ({_examples(moving)})",
            where=moving[0],
            hint="after `model.train()`, call `.eval()` on the frozen normalisation layers",
            layers=len(moving),
        )


def _in_evaluation(target: Target, step: TrainingStep, passes: EvalPasses | None) -> Iterator[Finding]:
    if passes is None:
        return
    stuck = [name for name in passes.still_training if depends_on_mode(target.model.get_submodule(name))]
    if stuck:
        yield fail(
            f"{_count(stuck, 'module stays', 'modules stay')} in train mode after `model.eval()` ({_examples(stuck)})",
            where=stuck[0],
            hint="do not override `train` so that it ignores `mode=False`",
            modules=len(stuck),
        )
        return
    if passes.batch_statistics:
        names = [name for name, _ in passes.batch_statistics]
        yield fail(
            f"batch normalisation uses the batch's own statistics in eval mode, and overwrites the running ones "
            f"({_examples(names)}): a prediction depends on the rest of its batch",
            where=names[0],
            location=passes.batch_statistics[0][1],
            hint="pass `training=self.training` to `F.batch_norm`",
            layers=len(names),
        )
    elif passes.moved_buffers:
        moved = [*passes.moved_buffers]
        yield note(
            f"{_count(moved, 'buffer changes', 'buffers change')} in eval mode too ({_examples(moved)})",
            where=moved[0],
        )
    if passes.gap <= passes.tolerance or any(stranger.created for stranger in step.strangers):
        return
    calls = {call.kind: call for call in reversed(passes.random_calls)}
    if (call := calls.get("dropout")) is not None:
        yield fail(
            f"{_DROPOUT_INSIDE.get(call.op, '')}`{call.op}` is active in eval mode: two passes over the same batch differ by {passes.gap:.2g} "
            "standard deviations",
            location=call.location,
            hint=_SWITCHES.get(call.op, f"pass `training=self.training` to `{call.op}`"),
            gap=passes.gap,
        )
    elif (call := calls.get("by hand")) is not None:
        yield warn(
            "a random mask drops activations in eval mode, and what it keeps is scaled as in dropout: two passes over "
            f"the same batch differ by {passes.gap:.2g} standard deviations",
            location=call.location,
            hint="draw the mask only `if self.training`",
            gap=passes.gap,
        )
    elif not passes.repeats:
        yield fail(
            f"two eval passes over the same batch from the same seed differ by {passes.gap:.2g} standard deviations: "
            "something is carried over from one call to the next",
            where=type(target.model).__name__,
            hint="reset hidden states and caches at the start of `forward`",
            gap=passes.gap,
        )
    else:
        sample = calls.get("sample")
        source = f"`{sample.op}`" if sample else "a random generator outside torch"
        yield note(
            f"eval passes differ by {passes.gap:.2g} standard deviations because the model samples ({source})",
            location=sample.location if sample else None,
            gap=passes.gap,
        )


def depends_on_mode(module: torch.nn.Module) -> bool:
    """Whether a module's own forward reads its training flag to any effect."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "training" not in code.co_names:
        return False
    rate = getattr(module, "p", None) if isinstance(module, _DROPOUTS) else getattr(module, "dropout", None)
    return not isinstance(rate, (int, float)) or rate > 0


def _topmost_in_eval(state: ModelState) -> list[str]:
    names = [name for name, training in state.training.items() if not training and name]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _count(names: list[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many}"


def _examples(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:2])
    return shown + (", …" if len(names) > 2 else "") if shown else "none by its own code"


def _dropout_mlp() -> torch.nn.Sequential:
    model = mlp()
    model.insert(2, torch.nn.Dropout(0.1))
    return model


def good() -> Target:
    return Target(_dropout_mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_frozen_backbone_in_eval() -> Target:
    norm = torch.nn.BatchNorm1d(8).requires_grad_(False).eval()
    return Target(torch.nn.Sequential(norm, mlp()), blobs(), torch.nn.CrossEntropyLoss())


def bad_left_in_eval() -> Target:
    return Target(_dropout_mlp().eval(), blobs(), torch.nn.CrossEntropyLoss())


def bad_functional_dropout() -> Target:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.body(F.dropout(x, 0.1))
            return logits

    return Target(Net(), blobs(), torch.nn.CrossEntropyLoss())


def bad_frozen_batchnorm_moves() -> Target:
    norm = torch.nn.BatchNorm1d(8).requires_grad_(False)
    return Target(torch.nn.Sequential(norm, mlp()), blobs(), torch.nn.CrossEntropyLoss())
