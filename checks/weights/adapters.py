"""Adapters that do not train, do not act, or beside which the wrong things train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.adapters import AdaptedLayer, Adapters
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs
from debugkit.tracing.graph import leaves

from ._frozen_heads import frozen_fresh_heads


@check
def adapters(
    target: Target,
    adapted: Adapters,
    step: TrainingStep | None,
    *,
    max_trainable_base: Annotated[
        float,
        Field(ge=0, le=1, description="share of the adapted weights that may be trainable themselves"),
    ] = 0.5,
) -> Iterator[Finding]:
    """Adapters (LoRA and its kin) that do not train, do not act, or beside which the wrong things train.

    Adapters are recognised by their structure: beside a layer kept as `base_layer`, or two factors of low rank
    beside a frozen weight.

    ## Why is this bad?
    An adapter loaded for inference is frozen, a merged or disabled one is skipped by the forward pass, one whose
    factors are both zero never gets a gradient: training runs and changes nothing of it. A base that is not
    frozen trains in full, with the memory and the forgetting that adapters are there to avoid. A new head that is
    frozen with the base stays random, and the adapter has to learn around it.

    ## What to do
    Load adapters for training with `is_trainable=True`, unmerge and enable them first, freeze the base after
    anything that unfreezes the model, name new heads in `modules_to_save` (a `task_type` does that).

    ## Known limits
    Frozen heads are judged only where the adapted weights are seen to be trained, and new rows of embeddings by
    `frozen-embeddings`; what the optimizer holds is the matter of `optimizer-coverage`. Adapters by hand are
    recognised while their base is frozen or a factor is zero. Soft prompts are no adapters of a layer.

    ## References
    - https://arxiv.org/abs/2106.09685
    - https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """
    model = target.model
    parameters = dict(model.named_parameters())
    trainable = [name for name in parameters if name in adapted.parameters and parameters[name].requires_grad]
    ahead = target.train_loader is not None or target.optimizer is not None
    if ahead and not trainable:
        yield _nothing_trains(adapted, any(p.requires_grad for p in parameters.values()))
    elif ahead:
        yield from _open_base(adapted, parameters, max_trainable_base)
        yield from _without_effect(adapted, parameters, step)
        yield from _ranks(adapted)
        yield from frozen_fresh_heads(model, adapted, step)
    total = sum(p.numel() for p in parameters.values() if not torch.nn.parameter.is_lazy(p)) or 1
    learn = sum(parameters[name].numel() for name in trainable)
    other = sum(p.numel() for n, p in parameters.items() if p.requires_grad and n not in adapted.parameters)
    yield note(
        f"{len(adapted.layers)} layers have adapters: {len(trainable)} of their {len(adapted.parameters)} parameters "
        f"train ({learn / total:.2%} of all values), and {other / total:.2%} beside them",
        layers=len(adapted.layers),
        trainable=len(trainable),
        share=(learn + other) / total,
    )


def _nothing_trains(adapted: Adapters, others: bool) -> Finding:
    count = len(adapted.parameters)
    name = adapted.layers[0].name
    if others:
        return warn(
            f"none of the {count} adapter parameters is trainable: only what stands beside them trains",
            where=name,
            hint="load the adapter with `is_trainable=True`, or set it active before training",
        )
    return fail(
        f"none of the {count} adapter parameters is trainable, so nothing trains",
        where=name,
        hint="load the adapter with `is_trainable=True`, or set it active before training",
        parameters=count,
    )


def _open_base(adapted: Adapters, parameters: dict[str, nn.Parameter], max_share: float) -> Iterator[Finding]:
    names = [name for name in adapted.base if name in parameters]
    free = sorted(name for name in names if parameters[name].requires_grad)
    if not free:
        return
    told = f"{len(free)} of {len(names)} weights that have an adapter are trainable themselves (such as `{free[0]}`)"
    if len(free) > max_share * len(names):
        yield warn(
            f"{told}: the base trains in full beside its adapters",
            where=free[0],
            hint="freeze the base with `requires_grad_(False)` after whatever unfroze it",
            weights=len(free),
        )
    else:
        yield note(told, where=free[0])


def _without_effect(
    adapted: Adapters, parameters: dict[str, nn.Parameter], step: TrainingStep | None
) -> Iterator[Finding]:
    stuck = [layer for layer in adapted.layers if layer.stuck]
    if stuck:
        yield fail(
            f"both factors of {_count(stuck)} are zero, so neither ever gets a gradient",
            where=stuck[0].name,
            hint="start one factor at random (`nn.init.kaiming_uniform_`) and the other at zero",
            layers=len(stuck),
        )
    if step is None or (step.cuts and not step.has_graph):
        return
    run = [layer for layer in adapted.layers if step.module_calls.get(layer.name) and layer not in stuck]
    learning = {layer.name: _trainable(layer, parameters) for layer in run}
    run = [layer for layer in run if learning[layer.name]]
    past = [layer for layer in run if _is_passed_by(layer, learning[layer.name], parameters, step)]
    hidden = [layer for layer in past if not step.module_outputs.get(layer.name)]
    if len(hidden) < len(run):
        past = [layer for layer in past if layer not in hidden]
    if past:
        yield fail(
            f"{_count(past)} {'runs' if len(past) == 1 else 'run'} without the adapter: the output does not depend on it",
            where=past[0].name,
            hint="unmerge or enable the adapter before training, or add its output in `forward`",
            layers=len(past),
        )
    run = [layer for layer in run if not step.reached.isdisjoint(learning[layer.name])]
    silent = [layer for layer in run if layer not in past and _is_silent(learning[layer.name], step)]
    if silent and math.isfinite(step.loss) and len(silent) == len(run):
        yield fail(
            f"the gradient of every parameter in {_count(silent)} is exactly zero: what the adapter adds is multiplied "
            "by zero",
            where=silent[0].name,
            hint="look at the adapter's scaling (`lora_alpha` over the rank), and at what its output is multiplied with",
            layers=len(silent),
        )


def _trainable(layer: AdaptedLayer, parameters: dict[str, nn.Parameter]) -> list[str]:
    return [name for name in layer.adapter if name in parameters and parameters[name].requires_grad]


def _is_passed_by(
    layer: AdaptedLayer, names: list[str], parameters: dict[str, nn.Parameter], step: TrainingStep
) -> bool:
    """Whether the output of an adapted layer depends on no trainable parameter of the adapter."""
    if any(name in step.gradients and not step.gradients[name].missing for name in names):
        return False
    held = leaves(step.module_outputs.get(layer.name, ()))
    return not any(id(parameters[name]) in held for name in names)


def _is_silent(names: list[str], step: TrainingStep) -> bool:
    return len(names) > 1 and all(name in step.gradients and step.gradients[name].zero for name in names)


def _ranks(adapted: Adapters) -> Iterator[Finding]:
    wide = [
        layer
        for layer in adapted.layers
        if layer.rank is not None and layer.short and layer.rank > layer.short
    ]
    if len(wide) > len(adapted.layers) / 2:
        first = wide[0]
        yield warn(
            f"the rank of {_count(wide)} is above the layer's own ({first.rank} over {first.short}): the adapter is larger "
            "than what it adapts",
            where=first.name,
            hint="choose a rank well below the width of the layers",
            rank=first.rank,
        )


def _count(layers: list[AdaptedLayer]) -> str:
    return f"{len(layers)} adapted layer{'s' if len(layers) != 1 else ''} (such as `{layers[0].name}`)"


class _LoRA(nn.Module):
    """A frozen linear layer, and a product of two factors beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale, self.merged = scale, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        return y if self.merged else y + self.scale * (x @ self.down.T @ self.up.T)


def _adapted(scale: float = 1.0) -> nn.Sequential:
    body = [part for _ in range(2) for part in (_LoRA(nn.Linear(16, 16), scale=scale), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, 16).requires_grad_(False), nn.ReLU(), *body, nn.Linear(16, 2))


def _target(model: nn.Module) -> Target:
    return Target(model, blobs(), nn.CrossEntropyLoss())


def good() -> Target:
    return _target(_adapted())


def bad_frozen_adapters() -> Target:
    model = _adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("6."))
    return _target(model)


def bad_base_not_frozen() -> Target:
    return _target(_adapted().requires_grad_(True))


def bad_merged() -> Target:
    model = _adapted()
    for part in model:
        if isinstance(part, _LoRA):
            part.merged = True
    return _target(model)


def bad_both_factors_zero() -> Target:
    model = _adapted()
    for part in model:
        if isinstance(part, _LoRA):
            nn.init.zeros_(part.down)
    return _target(model)


def bad_scaled_by_zero() -> Target:
    return _target(_adapted(scale=0.0))
