"""Gradients that are not finite, vanish or explode on the way through the layers, or drown in `eps`."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.gradient_fault import GradientFault
from debugkit.probes.initial_scales import InitialScales
from debugkit.probes.training_step import Gradient, TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.weights.freshness import model_is_fresh

_FEWEST_PEERS = 4
_TREND = 0.8
_LEARNABLE_LOSS = 1e-3
_AT_ZERO = frozenset(
    {"sqrt", "rsqrt", "pow", "__pow__", "norm", "std", "log", "div", "__truediv__", "acos", "atan2"}
)


@check
def gradient_scale(
    target: Target,
    step: TrainingStep,
    fault: GradientFault | None,
    scales: InitialScales | None,
    *,
    max_ratio: Annotated[
        float, Field(gt=1, description="gradient of the first layers over that of the last, or the reverse")
    ] = 1e4,
) -> Iterator[Finding]:
    """Gradients are NaN, vanish or explode from layer to layer, or are too small for the optimizer.

    The gradients of the traced step are compared among layers of the same shape and place.

    ## Why is this bad?
    One NaN in a gradient makes every weight NaN at the next step, though the loss was finite until then. Where
    gradients shrink by ten thousand on their way to the first layers, those stay as they were drawn, and the model is
    as deep as its last layers. Gradients under the `eps` of Adam are divided by `eps` instead of their own size, so
    the learning rate means nothing.

    ## What to do
    Keep square roots, norms and divisions away from 0 before they are taken: `torch.where` behind them hides the
    value but not the gradient. Against vanishing gradients use residual connections, norms and ReLU-like
    activations; against exploding ones, smaller initial weights, norms and clipping.

    ## Known limits
    Layers are compared where at least four have the same shape and place, and the gradient changes steadily from one
    to the next; of branches that read the same input, the first stands for all. The norm of all gradients together is a note: healthy models span ten orders of magnitude. Gradients
    that vanish over the steps of a recurrent layer don't show here. A large loss, from a sum or
    from large targets, is no finding: see `loss-reduction` and `target-scale`.

    ## References
    - https://proceedings.mlr.press/v9/glorot10a.html
    - https://arxiv.org/abs/1211.5063
    - https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html
    """
    if step.is_cut_off:
        raise Unavailable("the loss leads to no parameter; see `loss-connected`")
    if not math.isfinite(step.loss):
        raise Unavailable("the loss is not finite; see `finite-inputs`")
    alive = {name: gradient for name, gradient in step.gradients.items() if gradient.alive}
    if not alive:
        raise Unavailable("no parameter has a gradient; see `missing-gradients`")
    if fault is not None:
        yield _lost(step, fault)
        return
    findings = [
        *_through_layers(target.model, step, scales, max_ratio),
        *_under_eps(target, step, alive),
    ]
    yield from findings
    if not findings:
        total = _norm(gradient.norm for gradient in alive.values())
        yield note(f"{len(alive)} finite gradients with a norm of {total:.3g} in all", norm=total)


def _lost(step: TrainingStep, fault: GradientFault) -> Finding:
    told = f"{len(fault.parameters)} of {len(step.gradients)} gradients are NaN or infinite, though the loss is finite ({step.loss:.3g})"
    if fault.op is None:
        return fail(
            told,
            where=fault.parameters[0],
            hint="look for the operation with `torch.autograd.detect_anomaly()`",
        )
    op = fault.op.strip("_")
    return fail(
        f"{told}: they begin in the backward of `{op}`" + (f" in `{fault.module}`" if fault.module else ""),
        where=fault.parameters[0],
        location=fault.location,
        hint=f"keep what `{op}` gets away from 0 (`clamp(min=eps)` before it); hiding its result behind `torch.where` "
        "does not hide its gradient"
        if fault.op in _AT_ZERO
        else f"keep what `{op}` gets in the range where its slope is finite",
        parameters=len(fault.parameters),
    )


def _through_layers(
    model: torch.nn.Module, step: TrainingStep, scales: InitialScales | None, limit: float
) -> Iterator[Finding]:
    roles: dict[tuple[str, tuple[int, ...]], list[tuple[str, float]]] = defaultdict(list)
    seen = set()
    for name, layer in step.layers.layers.items():
        gradient = step.gradients.get(name)
        if gradient is not None and gradient.norm:  # a norm can underflow to 0
            weight = model.get_parameter(name)
            role = re.sub(r"\d+", "#", name), tuple(weight.shape)
            place = role, layer.before, layer.input_rms
            if place not in seen:  # of layers that read the same input, none is behind the other
                seen.add(place)
                roles[role].append((name, _rms(gradient, weight)))
    worst: tuple[float, list[tuple[str, float]]] | None = None
    for peers in roles.values():
        if len(peers) < _FEWEST_PEERS or not _is_steady([size for _, size in peers]):
            continue
        third = max(1, len(peers) // 3)
        first = statistics.median(size for _, size in peers[:third])
        last = statistics.median(size for _, size in peers[-third:])
        ratio = first / last
        if worst is None or abs(math.log(ratio)) > abs(math.log(worst[0])):
            worst = ratio, peers
    if worst is None or abs(math.log(worst[0])) <= math.log(limit):
        return
    ratio, peers = worst
    (first_name, first_size), (last_name, last_size) = peers[0], peers[-1]
    told = (
        f"the gradient {'shrinks' if ratio < 1 else 'grows'} {max(ratio, 1 / ratio):.2g} times on its way back through "
        f"{len(peers)} layers: {last_size:.2g} at `{last_name}`, {first_size:.2g} at `{first_name}`"
    )
    if scales is not None and scales.off:
        yield note(f"{told}; see `initialization`")
        return
    yield warn(
        f"{told}: {'the first layers hardly learn' if ratio < 1 else 'one learning rate can not suit both'}",
        where=first_name,
        hint="add residual connections or norms, and use ReLU-like activations"
        if ratio < 1
        else "normalise between the layers, or initialise them smaller",
        ratio=ratio,
        layers=len(peers),
    )


def _is_steady(sizes: list[float]) -> bool:
    """Whether the logarithms rise or fall with depth."""
    logs = [math.log(size) for size in sizes]
    if max(logs) == min(logs):
        return False
    return abs(statistics.correlation([float(i) for i in range(len(logs))], logs)) > _TREND


def _under_eps(target: Target, step: TrainingStep, alive: dict[str, Gradient]) -> Iterator[Finding]:
    groups = getattr(target.optimizer, "param_groups", ())
    eps = [group["eps"] for group in groups if "eps" in group and "betas" in group]
    eps = [value for value in eps if isinstance(value, float)]
    largest = max(gradient.largest or 0.0 for gradient in alive.values())
    if not eps or not 0 < largest < min(eps):
        return
    if abs(step.loss) < _LEARNABLE_LOSS and not model_is_fresh(target.model):
        return
    yield warn(
        f"the largest gradient of all is {largest:.2g}, under the optimizer's `eps` of {min(eps):.0e}: steps are up to "
        f"{min(eps) / largest:.2g} times smaller than the learning rate says",
        hint="look for the factor that makes the gradients so small, or set a smaller `eps`",
        largest=largest,
    )


def _rms(gradient: Gradient, weight: torch.Tensor) -> float:
    return (gradient.norm or 0.0) / math.sqrt(max(1, weight.numel()))


def _norm(norms: Iterator[float | None]) -> float:
    return math.sqrt(sum((norm or 0.0) ** 2 for norm in norms))


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def bad_square_root_of_zero() -> Target:
    def step(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = model(batch[0])
        distance = (logits - logits.detach()).square().sum(1).sqrt()
        loss: torch.Tensor = torch.nn.functional.cross_entropy(logits, batch[1]) + distance.mean()
        return loss

    return Target(mlp(), blobs(), training_step=step)


def bad_twelve_sigmoids() -> Target:
    hidden = [part for _ in range(12) for part in (torch.nn.Linear(32, 32), torch.nn.Sigmoid())]
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), *hidden, torch.nn.Linear(32, 2))
    return Target(model, blobs(), torch.nn.CrossEntropyLoss())
