"""Gradients over several batches and seeds: what is missing always, sometimes, or only at initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, backward, gradients_of, run_step
from debugkit.sandbox import Sandbox, seed_everything
from debugkit.target import Target
from debugkit.trace import record


@dataclass(frozen=True)
class Gradients:
    """Which trainable parameters get a gradient.

    The traced step is the first look. Only where something is missing or zero there, two more batches are
    run with other seeds; in the last one, parameters that are zero throughout (LoRA's B, a zero-initialised
    head) are nudged away from zero, since they hide the gradients of everything behind them.

    Attributes:
        batches: how many backward passes were looked at.
        missing: names of the parameters whose gradient was ``None`` every time.
        sometimes: names of those whose gradient was ``None`` only sometimes.
        zero: names of those whose gradient was exactly zero every time.
        zero_at_start: names of those whose gradient was zero only while other parameters were zero.
        calls: per batch, how often each module ran.
    """

    cost: ClassVar[Cost] = "backward"
    batches: int
    missing: tuple[str, ...]
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
        for turn in (1, 2) if doubtful else ():
            blank = _blank_parameters(target.model) if turn == 2 else []
            sandbox.protect(blank)
            with sandbox.probe():
                if not sandbox.training[""]:
                    target.model.train()
                _nudge(blank)
                seed_everything(turn)
                with record(target.model) as recorder:
                    outcome = run_step(target, batches.items[turn % len(batches.items)])
                if outcome.loss.requires_grad and not any(
                    p.grad is not None for p in target.model.parameters()
                ):
                    backward(outcome.loss)
                looks.append(gradients_of(target.model))
                calls.append(dict(recorder.module_calls))
        names = list(step.gradients)
        missing = [n for n in names if all(look[n].missing for look in looks)]
        sometimes = [n for n in names if n not in missing and any(look[n].missing for look in looks)]
        dead = [
            n for n in names if n not in missing and all(look[n].missing or look[n].zero for look in looks)
        ]
        early = [n for n in names if n not in dead and any(look[n].zero for look in looks[:2])]
        return Gradients(
            len(looks), tuple(missing), tuple(sometimes), tuple(dead), tuple(early), tuple(calls)
        )


def _blank_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [
        p
        for p in model.parameters()
        if p.numel() and p.is_floating_point() and not p.is_meta and not bool(p.detach().any())
    ]


def _nudge(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0.0, 0.02)
