"""What padding does to a model's outputs, tried on rows about which there is a doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.pad_token import lacks_pad_id, with_pad_id
from debugkit.tokens.pad_trial import Doubt, Effect, PadTrial
from debugkit.tokens.padding import unset_masks
from debugkit.tracing.source import is_library_class


@dataclass(frozen=True, eq=False)
class PadTrials:
    """What came of the doubts about padding.

    Attributes:
        doubts: what there was to try; nothing runs without a doubt.
        missing: a mask given where the batch has none.
        wrong: the mask corrected.
        turned: the mask inverted, or given to the encoder inside the model that does not get it.
        left: padding moved to the right.
        no_pad_id: the id of padding set in a configuration that has none; ``now`` is infinite where the step raises.
    """

    cost: ClassVar[Cost] = "forward"
    doubts: frozenset[Doubt]
    missing: Effect | None = None
    wrong: Effect | None = None
    turned: Effect | None = None
    left: Effect | None = None
    no_pad_id: Effect | None = None

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        batches: Batches,
        samples: Samples,
        ids: TokenIds,
        step: TrainingStep | None,
    ) -> PadTrials:
        """Run at most two padded rows, as they are and with the padding cut off, masked or moved."""
        doubts = _doubts(ids, target.model, step)
        unnamed = lacks_pad_id(target, samples, ids)
        effects: dict[str, Effect | None] = {}
        if unnamed:
            effects["no_pad_id"] = with_pad_id(target, sandbox, batches, ids)
        if doubts:
            trial = PadTrial(target, sandbox, batches, ids)
            for doubt in sorted(doubts):
                with sandbox.probe():
                    effects[doubt] = trial.effect(doubt)
        return PadTrials(doubts, **effects)


def _doubts(ids: TokenIds, model: torch.nn.Module, step: TrainingStep | None) -> frozenset[Doubt]:
    found: set[Doubt] = set()
    if ids.pad is None:
        return frozenset()
    call = step.root_call if step is not None else None
    dropped = call is not None and bool(unset_masks(model, *call))
    if (ids.mask is None or dropped) and ids.padded.any():
        found.add("missing")
    if ids.side in ("left", "both"):
        found.add("left")
    if ids.uncovered.any() or ids.hidden.any():
        found.add("wrong")
    elif ids.mask is not None and not dropped and ids.padded.any() and not is_library_class(type(model)):
        found.add("turned")
    return frozenset(found)
