"""Gradients over several batches and seeds: what is missing always, sometimes, or only at initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import Gradient, TrainingStep, backward, gradients_of, run_step
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.trace import record


@dataclass(frozen=True)
class Gradients:
    """Which trainable parameters get a gradient.

    The traced step is the first look. Only while something is missing or zero, up to two more batches are run
    with other seeds. Parameters that are zero throughout and do get a gradient (LoRA's B, a zero-initialised
    head) are nudged away from zero there, as the first optimizer step would, since they hide the gradients of
    everything behind them. A third batch follows where that woke further zero parameters.

    Attributes:
        batches: how many backward passes were looked at.
        missing: names of the parameters whose gradient was ``None`` every time.
        conditional: those of the missing that belong to a branch which the data may not have chosen, such as
            an expert among others.
        sometimes: names of those whose gradient was ``None`` only sometimes.
        zero: names of those whose gradient was exactly zero every time.
        zero_at_start: names of those whose gradient was zero only while other parameters were zero.
        calls: per batch, how often each module ran.
    """

    cost: ClassVar[Cost] = "backward"
    batches: int
    missing: tuple[str, ...]
    conditional: tuple[str, ...]
    sometimes: tuple[str, ...]
    zero: tuple[str, ...]
    zero_at_start: tuple[str, ...]
    calls: tuple[Mapping[str, int], ...] = field(repr=False)

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep) -> Gradients:
        """Look again where the traced step leaves doubt."""
        looks = [step.gradients]
        calls = [step.module_calls]
        doubtful = step.has_graph and any(g.missing or g.zero for g in step.gradients.values())
        blank = _blank_parameters(target.model) if doubtful else {}
        sandbox.protect(blank.values())
        for turn in (1, 2, 3):
            if not doubtful or (turn == 3 and not _woken(blank, looks)):
                break
            with sandbox.probe():
                if not sandbox.training[""]:
                    target.model.train()
                _nudge([p for name, p in blank.items() if any(look[name].alive for look in looks)])
                seed_everything(turn)
                with record(target.model) as recorder:
                    outcome = run_step(target, batches.items[turn % len(batches.items)])
                if outcome.loss.requires_grad and not any(
                    p.grad is not None for p in target.model.parameters()
                ):
                    backward(outcome.loss)
                looks.append(gradients_of(target.model))
                calls.append(dict(recorder.module_calls))
            doubtful = any(all(look[name].missing or look[name].zero for look in looks) for name in looks[0])
        names = list(step.gradients)
        missing = [n for n in names if all(look[n].missing for look in looks)]
        sometimes = [n for n in names if n not in missing and any(look[n].missing for look in looks)]
        dead = [
            n for n in names if n not in missing and all(look[n].missing or look[n].zero for look in looks)
        ]
        early = [n for n in names if blank and n not in dead and looks[0][n].zero and not looks[-1][n].zero]
        branches = [
            name for name in missing if _is_conditional(target.model, calls, step.module_shapes, name)
        ]
        return Gradients(
            batches=len(looks),
            missing=tuple(missing),
            conditional=tuple(branches),
            sometimes=tuple(sometimes),
            zero=tuple(dead),
            zero_at_start=tuple(early),
            calls=tuple(calls),
        )


def _blank_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad
        and p.numel()
        and p.is_floating_point()
        and not p.is_meta
        and not bool(p.detach().any())
    }


def _woken(blank: Mapping[str, torch.nn.Parameter], looks: Sequence[Mapping[str, Gradient]]) -> bool:
    """Whether the last look gave a zero parameter its first gradient."""
    return any(looks[-1][name].alive and not any(look[name].alive for look in looks[:-1]) for name in blank)


def _nudge(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0.0, 0.02)


def _is_conditional(
    model: torch.nn.Module,
    looks: Sequence[Mapping[str, int]],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
) -> bool:
    """Whether a parameter sits in one of several alike siblings among which the data chooses.

    The choice shows in siblings that ran on some batches and not on others; or in siblings that ran on
    different numbers of rows, with a router (a layer with one output per sibling) beside them.
    """
    path = name.split(".")
    for depth in range(1, len(path)):
        container_name = ".".join(path[:depth])
        container = _module(model, container_name)
        if not isinstance(container, (torch.nn.ModuleList, torch.nn.ModuleDict)) or len(container) < 2:
            continue
        mine = f"{container_name}.{path[depth]}"
        siblings = [f"{container_name}.{child}" for child, _ in container.named_children()]
        if any(calls.get(mine, 0) for calls in looks):
            continue
        patterns = {tuple(bool(calls.get(sibling, 0)) for sibling in siblings) for calls in looks}
        if not any(any(pattern) for pattern in patterns):
            continue
        around = model.get_submodule(container_name.rpartition(".")[0])
        routed = any(
            parameter.ndim == 2 and parameter.shape[0] == len(siblings)
            for child, module in around.named_modules()
            if not child.startswith(path[depth - 1])
            for parameter in module._parameters.values()
            if parameter is not None
        )
        rows = {shapes[sibling][:1] for sibling in siblings if sibling in shapes}
        if len(patterns) > 1 or (routed and len(rows) > 1):
            return True
    return False


def _module(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
