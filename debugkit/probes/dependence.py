"""What outputs depend on: rows on rows, positions on positions, rows on each input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.eval_passes import EvalPasses
from debugkit.probes.token_targets import TokenTargets
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.alignment import NEXT
from debugkit.tracing.influence import Effect, Features, Mixing, Order, Span
from debugkit.tracing.root_call import RootCall
from debugkit.trials.row_look import RowLook
from debugkit.trials.row_plan import Asked


@dataclass(frozen=True, eq=False)
class Dependence:
    """Two passes in eval mode over a few rows, the second with changes, and more where those leave a doubt.

    In the second pass the first row has other values (tokens from the middle on), the second row stays as it is, and
    each further row has one change more: another order, another value of one input. Both passes have the same rows in
    the same places and the same random numbers, so what does not depend on a change does not move at all. Parameters
    that are zero throughout are nudged, as the first optimizer step would, since they hide what is behind them.

    Attributes:
        rows: how many rows the passes had.
        samples: how many different rows.
        names: the inputs of the model.
        main: the input that was changed in the first row.
        tolerance: a change, in widths of the middle half of all outputs, that rounding may explain.
        own: how far the outputs of the first row moved; 0 where nothing else moves any output either, ``None`` where
            that could not be told.
        reached: whether the outputs are computed from the inputs at all, as far as gradients tell; ``None`` where
            that was not asked.
        mixing: what the row that stayed did; ``None`` where rows could not be told apart, for the reason given.
        unmixed_because: why there is no ``mixing``.
        span: the first row position by position, where there is an output for each.
        decoder: the same for the tokens that a decoder is given.
        next_step: whether each position has to predict what comes next in the span's input.
        order: what another order did.
        effects: by name, what a change of an input did.
        features: which features of the main input change nothing, where it is numbers.
        variety: how far apart the outputs of different samples are, relative to their size; 0 where they are the same
            in double precision too, ``None`` for one sample, or where it could not be told.
        same_from: the first module whose outputs are the same for all samples, where they are.
        nudged: how many parameters were nudged.
    """

    cost: ClassVar[Cost] = "backward"
    rows: int
    samples: int
    names: tuple[str, ...]
    main: str
    tolerance: float
    own: float | None
    reached: bool | None
    mixing: Mixing | None
    unmixed_because: str | None
    span: Span | None
    decoder: Span | None
    next_step: bool
    order: Order | None
    effects: Mapping[str, Effect]
    features: Features | None
    variety: float | None
    same_from: str | None
    nudged: int

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        batches: Batches,
        step: TrainingStep,
        targets: TokenTargets | None,
        passes: EvalPasses | None,
    ) -> Dependence:
        """Run both passes on a few rows of the first batch.

        Raises:
            Unavailable: the step never calls the model as a whole, the call has no rows, or the model carries
                something over from one call to the next.
        """
        if step.root_call is None:
            raise Unavailable("the training step calls parts of the model, never the model as a whole")
        if passes is not None and passes.gap > passes.tolerance and not passes.repeats:
            raise Unavailable(
                "two eval passes over the same batch differ, so nothing can be compared (see `eval-mode`)"
            )
        call = RootCall.of(target.model, step.root_call)
        look = RowLook(target, sandbox, batches.first, call, _asked(targets))
        plan = look.plan
        own, (mixing, why), variety = look.own(), look.mixing(), look.variety()
        tells = bool(own) and (mixing is None or not mixing.change)
        return Dependence(
            rows=len(plan.picks),
            samples=len({*plan.picks}),
            names=tuple(plan.material.call.inputs(plan.material.rows)),
            main=plan.material.main,
            tolerance=look.tolerance,
            own=own,
            reached=look.is_reached() if own == 0.0 or variety == 0.0 else None,
            mixing=mixing,
            unmixed_because=why,
            span=look.span(plan.main),
            decoder=None if plan.decoder is None else look.span(plan.decoder),
            next_step=plan.next_step,
            order=look.order() if tells else None,
            effects=look.effects() if tells else {},
            features=look.features() if own else None,
            variety=variety,
            same_from=look.same_from() if variety == 0.0 else None,
            nudged=look.nudged,
        )


def _asked(targets: TokenTargets | None) -> Asked | None:
    if targets is None or targets.batch != 0:
        return None
    return Asked(targets.rows, targets.ids, targets.targets, targets.decoder, targets.shift == NEXT)
