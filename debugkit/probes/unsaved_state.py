"""State that a training step changes, that outputs depend on, and that a checkpoint does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from debugkit.data.batch import fresh, size, sliceable, take, tensors
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.eval_passes import EvalPasses, gap_between
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.state.memory import Memory
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.program import Program

_MOST_TRIED = 6
_NUDGE = 0.05


@dataclass(frozen=True)
class UnsavedState:
    """Attributes of modules, and buffers that are not persistent, over one training step.

    Attributes:
        changed: dotted names of those that the step changed.
        needed: those of them on which the outputs in eval mode depend.
        gap: how far the outputs move without them, in standard deviations.
        compared: whether the outputs could be compared.
    """

    cost: ClassVar[Cost] = "backward"
    changed: tuple[str, ...]
    needed: tuple[str, ...] = ()
    gap: float = 0.0
    compared: bool = True

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep, passes: EvalPasses | None
    ) -> UnsavedState:
        """Run the step on two rows; evaluate with and without what it left behind, where it left anything.

        The parameters are nudged before, as the training would, so that state which follows from them shows.

        Raises:
            Unavailable: the step does not run on two rows of the batch.
        """
        with sandbox.probe():
            if not sandbox.training[""]:
                target.model.train()
            before = Memory(target.model)
            try:
                run_step(target, _rows(batches.first, 2))
            except Broken as error:
                raise Unavailable(f"the step does not run on two rows of the batch ({error})") from error
            changed = before.changed()
            if not changed:
                return UnsavedState(())
            if step.root_call is None or passes is None or passes.gap > passes.tolerance:
                return UnsavedState(tuple(changed), compared=False)
            _nudge(target.model)
            target.model.eval()
            call = _rows(step.root_call, 1)
            after = Memory(target.model)
            with torch.no_grad(), Program(target).precision():
                first = _outputs(target, call)
                before.put_back(*changed)
                gap, tolerance = gap_between(first, _outputs(target, call))
                if gap <= tolerance:
                    return UnsavedState(tuple(changed))
                needed = []
                for name in changed[:_MOST_TRIED] if len(changed) > 1 else ():
                    after.put_back(*changed)
                    before.put_back(name)
                    if gap_between(first, _outputs(target, call))[0] > tolerance:
                        needed.append(name)
        return UnsavedState(tuple(changed), tuple(needed or changed), gap)


def _rows(batch: Any, count: int) -> Any:
    return take(batch, range(count)) if sliceable(batch) and (size(batch) or 0) > count else batch


@torch.no_grad()
def _nudge(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point() and not parameter.is_meta:
            parameter.mul_(1 + _NUDGE * torch.randn_like(parameter))


def _outputs(target: Target, call: Any) -> list[torch.Tensor]:
    args, kwargs = fresh(call, target.device)
    seed_everything(0)
    try:
        outputs = target.model(*args, **kwargs)
    except Exception as error:  # the program may refuse a part of its batch in any way
        raise Unavailable(
            f"the model does not run on one row of the batch ({type(error).__name__})"
        ) from error
    return [t.detach().clone() for _, t in tensors(outputs) if t.is_floating_point() and t.numel()]
