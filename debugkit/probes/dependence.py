"""What outputs depend on: rows on rows, positions on positions, rows on each input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from debugkit.errors import Broken, Unavailable
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
from debugkit.tracing.row_outputs import RowOutputs, row_outputs
from debugkit.trials.mixed_rows import examine
from debugkit.trials.row_doubts import (
    feature_dim,
    first_moved,
    ignored_features,
    is_constant,
    is_reached,
    order_of,
    reordered_change,
    same_from,
)
from debugkit.trials.row_plan import Asked, Change, plan_rows
from debugkit.trials.same_rows import SameRows, with_rows

_ROUNDING = 1e-5
_LOW_ROUNDING = 1e-2
_MOST_DROPPED = 2
_MOST_COST = 3
_FEW_ROWS = 4


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
        variety: how far apart the outputs of different samples are, relative to their size; ``None`` for one sample.
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
        return _Look(target, sandbox, batches, RootCall.of(target.model, step.root_call), targets).measure()


def _asked(targets: TokenTargets | None) -> Asked | None:
    if targets is None or targets.batch != 0:
        return None
    return Asked(targets.rows, targets.ids, targets.targets, targets.decoder, targets.shift == NEXT)


class _Look:
    """Both passes, and what is read from them."""

    def __init__(
        self, target: Target, sandbox: Sandbox, batches: Batches, call: RootCall, targets: TokenTargets | None
    ) -> None:
        self._target = target
        self._rows = SameRows(target, sandbox)
        self._tolerance = _LOW_ROUNDING if self._rows.low else _ROUNDING
        loader_rows = getattr(target.train_loader, "batch_size", None)
        given = (call, batches.first, _asked(targets), loader_rows if isinstance(loader_rows, int) else None)
        self._plan = plan_rows(*given)
        self._cut = not self._plan.whole
        try:
            self._run_first()
        except Broken as error:
            if self._plan.whole:
                raise Unavailable(str(error)) from error
            self._plan, self._cut = plan_rows(*given, whole=True), False
            try:
                self._run_first()
            except Broken as again:
                raise Unavailable(str(again)) from again
        self._run_second()

    def measure(self) -> Dependence:
        plan, material = self._plan, self._plan.material
        count = len(plan.picks)
        own: float | None = max(float(change[0].max()) for change in self._moved())
        inputs = [*material.call.inputs(material.rows)]
        if own == 0.0 and is_constant(self._rows, material, self._picked, self._before, inputs) is not True:
            own = None
        mixing, why = self._mixing()
        variety = self._variety()
        flat = variety == 0.0
        span = self._span(plan.main)
        return Dependence(
            rows=count,
            samples=len({*plan.picks}),
            names=tuple(inputs),
            main=material.main,
            tolerance=self._tolerance,
            own=own,
            reached=self._is_reached() if own == 0.0 or flat else None,
            mixing=mixing,
            unmixed_because=why,
            span=span,
            decoder=None if plan.decoder is None else self._span(plan.decoder),
            next_step=plan.next_step,
            order=None if not own or (mixing is not None and mixing.change) else self._order(),
            effects={} if not own or (mixing is not None and mixing.change) else self._effects(),
            features=self._features() if own else None,
            variety=variety,
            same_from=same_from(self._rows, self._target.model, self._picked, count) if flat else None,
            nudged=self._rows.nudged,
        )

    def _run_first(self) -> None:
        material = self._plan.material
        self._picked = material.call.take(self._plan.picks, material.rows) if self._cut else material.call
        self._before = self._rows.run(self._picked)
        self._outputs = self._by_row(self._before)
        if not self._outputs:
            raise Unavailable(
                f"the outputs have no row for each of the {len(self._plan.picks):,} rows of `{material.main}`"
            )

    def _run_second(self) -> None:
        changed = self._plan.changes()
        if all(torch.equal(value, self._picked.tensors[p][:1]) for p, value in changed[0].items()):
            raise Unavailable(
                f"all rows of `{self._plan.material.main}` are the same, so there is nothing to change"
            )
        try:
            self._changed = self._outputs_of(changed)
        except Broken as error:
            if not self._plan.keys and self._plan.decoder is None and self._plan.order is None:
                raise Unavailable(f"the model takes no other values: {error}") from error
            self._plan = replace(self._plan, keys={}, decoder=None, order=None)
            try:
                self._changed = self._outputs_of(self._plan.changes())
            except Broken as again:
                raise Unavailable(f"the model takes no other values: {again}") from again

    def _outputs_of(self, changes: Sequence[Mapping[str, torch.Tensor]]) -> list[RowOutputs]:
        found = self._by_row(self._rows.run(with_rows(self._picked, changes)))
        shapes = [output.values.shape for output in found]
        if shapes != [output.values.shape for output in self._outputs]:
            raise Unavailable("the shapes of the outputs depend on the values of the inputs")
        return found

    def _by_row(self, outputs: Any) -> list[RowOutputs]:
        return row_outputs(outputs, len(self._plan.picks), self._plan.material.length, self._rows.low)

    def _moved(self) -> list[torch.Tensor]:
        return [
            one.change(other, one.spread) for one, other in zip(self._outputs, self._changed, strict=True)
        ]

    def _mixing(self) -> tuple[Mixing | None, str | None]:
        plan = self._plan
        if len(plan.picks) < 2:
            return None, "the batch has one row"
        if plan.unaligned is not None:
            return None, f"`{plan.unaligned}` has no entry for each row, so rows may belong together"
        change = float(self._outputs[0].change(self._changed[0], self._outputs[0].spread)[1].max())
        if change <= self._tolerance:
            return Mixing(0.0, fixed=not self._cut), None
        found = examine(
            self._rows,
            self._target.model,
            plan.material,
            plan.picks,
            plan.changes(turn=1),
            Mixing(change, fixed=not self._cut),
            self._tolerance,
            known_axis=plan.known_axis,
        )
        return found or Mixing(0.0), None

    def _span(self, change: Change) -> Span | None:
        found = self._positions(self._changed, change)
        if found is None or (change.stop is None and not self._plan.next_step):
            return None
        span = Span(
            path=change.path,
            start=change.start,
            stop=change.stop or len(found),
            change=found,
            asked=change.asked,
            documents=change.documents,
            declared=change.declared,
            ahead=change.ahead,
        )
        suspicious = [*span.before.tolist(), *span.other_documents.tolist()]
        if max(suspicious, default=0.0) <= self._tolerance:
            return span
        try:
            again = self._positions(self._outputs_of(self._plan.changes(turn=1)), change)
        except (Broken, Unavailable):
            return span
        if again is None:
            return span
        changes: list[dict[str, torch.Tensor]] = [{} for _ in self._plan.picks]
        changes[change.row] = self._plan.changes()[change.row]
        changed = with_rows(self._picked, changes)
        place = slice(change.start + change.ahead) if change.documents is None else None
        touch = first_moved(
            self._rows, self._target.model, (self._picked, changed), change.row, place, self._tolerance
        )
        return replace(span, change=torch.minimum(found, again), repeated=True, touch=touch)

    def _positions(self, changed: Sequence[RowOutputs], change: Change) -> torch.Tensor | None:
        """How far the outputs of each position of a changed row moved ``[length]``."""
        tensor = self._picked.tensors[change.path]
        if tensor.ndim < 2:
            return None
        length = tensor.shape[1]
        before = self._outputs[0]
        moved = before.change(changed[0], before.spread)[change.row].cpu()
        if moved.ndim >= 2 and 0 <= length - len(moved) <= _MOST_DROPPED:
            return moved.flatten(1).amax(1)
        if moved.ndim == 2 and moved.shape[1] == length:
            return moved.amax(0)
        if moved.ndim == 1 and len(moved) == length and self._plan.next_step:
            return moved
        return None

    def _is_reached(self) -> bool | None:
        changed = with_rows(self._picked, self._plan.changes())
        return is_reached(self._rows, self._picked, changed, len(self._plan.picks))

    def _order(self) -> Order | None:
        plan = self._plan
        if plan.order is None:
            return None
        row, order = plan.order
        before, after = self._outputs[0], self._changed[0]
        change = float(reordered_change(before, after, row, order, before.spread).max())
        if change > _ROUNDING:
            return Order(change, exact=False, pairs=False)
        changes: list[dict[str, torch.Tensor]] = [{} for _ in plan.picks]
        changes[row] = plan.changes()[row]
        return order_of(
            self._rows, self._picked, with_rows(self._picked, changes), row, order, plan.material, change
        )

    def _effects(self) -> dict[str, Effect]:
        found = {}
        for path, row in self._plan.keys.items():
            change = max(float(moved[row].max()) for moved in self._moved())
            tensor = self._picked.tensors[path]
            mask = "mask" in path.rpartition(".")[2]
            constant = change == 0.0 and bool(
                is_constant(self._rows, self._plan.material, self._picked, self._before, [path])
            )
            found[path] = Effect(change, constant, mask, mask and bool((tensor == 0).any()))
        return found

    def _features(self) -> Features | None:
        """Which features no output depends on: by gradient in as many rows as the cost allows, then by changing them."""
        plan, material = self._plan, self._plan.material
        values = self._picked.tensors[material.main]
        dim = feature_dim(values)
        spare = (_MOST_COST * material.rows - 2 * len(plan.picks)) // 3
        if material.tokens or not self._cut or plan.unaligned is not None or dim is None or spare < 1:
            return None
        few = material.call.take(plan.picks[: min(spare, len(plan.picks), _FEW_ROWS)], material.rows)
        return ignored_features(self._rows, (few, self._picked), material, self._before, dim)

    def _variety(self) -> float | None:
        """How far outputs of different samples are apart, relative to their size."""
        given = self._picked.tensors[self._plan.material.main]
        if not bool((given != given[:1]).any()):
            return None
        found = 0.0
        for output in self._outputs:
            values = torch.where(output.values.isfinite(), output.values, 0.0)
            apart = float((values - values[:1]).abs().max())
            found = max(found, apart / (float(values.abs().max()) or 1.0))
        return found
