"""A few rows run twice, the second time with changes, and what that tells about dependence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from debugkit.errors import Broken, Unavailable
from debugkit.sandbox import Sandbox
from debugkit.target import Target
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


class RowLook:
    """Two passes over a few rows, the second with changes, and what is read from them.

    Args:
        target: the program.
        sandbox: what each pass runs in.
        batch: the batch that the call came from.
        call: the model's call.
        asked: what is known of what positions have to predict.

    Attributes:
        plan: the rows and their changes.
        tolerance: a change that rounding may explain.

    Raises:
        Unavailable: there is nothing to change or to compare.
    """

    def __init__(
        self, target: Target, sandbox: Sandbox, batch: Any, call: RootCall, asked: Asked | None
    ) -> None:
        self._target = target
        self._rows = SameRows(target, sandbox)
        self.tolerance = _LOW_ROUNDING if self._rows.low else _ROUNDING
        loader_rows = getattr(target.train_loader, "batch_size", None)
        given = (call, batch, asked, loader_rows if isinstance(loader_rows, int) else None)
        self.plan = plan_rows(*given)
        self._cut = not self.plan.whole
        try:
            self._run_first()
        except Broken as error:
            if self.plan.whole:
                raise Unavailable(str(error)) from error
            self.plan, self._cut = plan_rows(*given, whole=True), False
            try:
                self._run_first()
            except Broken as again:
                raise Unavailable(str(again)) from again
        self._run_second()

    def _run_first(self) -> None:
        material = self.plan.material
        self._picked = material.call.take(self.plan.picks, material.rows) if self._cut else material.call
        self._before = self._rows.run(self._picked)
        self._outputs = self._by_row(self._before)
        if not self._outputs:
            raise Unavailable(
                f"the outputs have no row for each of the {len(self.plan.picks):,} rows of `{material.main}`"
            )

    def _run_second(self) -> None:
        changed = self.plan.changes()
        if all(torch.equal(value, self._picked.tensors[p][:1]) for p, value in changed[0].items()):
            raise Unavailable(
                f"all rows of `{self.plan.material.main}` are the same, so there is nothing to change"
            )
        try:
            self._changed = self._outputs_of(changed)
        except Broken as error:
            if not self.plan.keys and self.plan.decoder is None and self.plan.order is None:
                raise Unavailable(f"the model takes no other values: {error}") from error
            self.plan = replace(self.plan, keys={}, decoder=None, order=None)
            try:
                self._changed = self._outputs_of(self.plan.changes())
            except Broken as again:
                raise Unavailable(f"the model takes no other values: {again}") from again

    def _outputs_of(self, changes: Sequence[Mapping[str, torch.Tensor]]) -> list[RowOutputs]:
        found = self._by_row(self._rows.run(with_rows(self._picked, changes)))
        shapes = [output.values.shape for output in found]
        if shapes != [output.values.shape for output in self._outputs]:
            raise Unavailable("the shapes of the outputs depend on the values of the inputs")
        return found

    def _by_row(self, outputs: Any) -> list[RowOutputs]:
        return row_outputs(outputs, len(self.plan.picks), self.plan.material.length, self._rows.low)

    def _moved(self) -> list[torch.Tensor]:
        return [
            one.change(other, one.spread) for one, other in zip(self._outputs, self._changed, strict=True)
        ]

    def own(self) -> float | None:
        """How far the outputs of the first row moved; ``None`` where only another change moves an output."""
        change = max(float(moved[0].max()) for moved in self._moved())
        material = self.plan.material
        inputs = [*material.call.inputs(material.rows)]
        if (
            change == 0.0
            and is_constant(self._rows, material, self._picked, self._before, inputs) is not True
        ):
            return None
        return change

    @property
    def nudged(self) -> int:
        """How many parameters were nudged."""
        return self._rows.nudged

    def same_from(self) -> str | None:
        """The first module whose outputs are the same in all rows."""
        return same_from(self._rows, self._target.model, self._picked, len(self.plan.picks))

    def mixing(self) -> tuple[Mixing | None, str | None]:
        """What the row that stayed did, or why there is none."""
        plan = self.plan
        if len(plan.picks) < 2:
            return None, "the batch has one row"
        if plan.unaligned is not None:
            return None, f"`{plan.unaligned}` has no entry for each row, so rows may belong together"
        change = float(self._outputs[0].change(self._changed[0], self._outputs[0].spread)[1].max())
        if change <= self.tolerance:
            return Mixing(0.0, fixed=not self._cut), None
        found = examine(
            self._rows,
            self._target.model,
            plan.material,
            plan.picks,
            plan.changes(turn=1),
            Mixing(change, fixed=not self._cut),
            self.tolerance,
            known_axis=plan.known_axis,
        )
        return found or Mixing(0.0), None

    def span(self, change: Change) -> Span | None:
        """What a change of tokens did, position by position; ``None`` without an output for each."""
        found = self._positions(self._changed, change)
        given = self._picked.tensors[change.path][change.row : change.row + 1]
        if torch.equal(self.plan.changes()[change.row][change.path], given):
            return None
        if found is None or (change.stop is None and not self.plan.next_step):
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
        if change.asked is not None and not self.plan.next_step and not bool(span.before.any()):
            return self._doubled(span, change)
        suspicious = [*span.before.tolist(), *span.other_documents.tolist()]
        if max(suspicious, default=0.0) <= self.tolerance:
            return span
        try:
            again = self._positions(self._outputs_of(self.plan.changes(turn=1)), change)
        except (Broken, Unavailable):
            return span
        if again is None:
            return span
        changes: list[dict[str, torch.Tensor]] = [{} for _ in self.plan.picks]
        changes[change.row] = self.plan.changes()[change.row]
        changed = with_rows(self._picked, changes)
        place = slice(change.start + change.ahead) if change.documents is None else None
        touch = first_moved(
            self._rows, self._target.model, (self._picked, changed), change.row, place, self.tolerance
        )
        return replace(span, change=torch.minimum(found, again), repeated=True, touch=touch)

    def _doubled(self, span: Span, change: Change) -> Span:
        """The same in double precision, where rounding does not swallow what is small."""
        changes: list[dict[str, torch.Tensor]] = [{} for _ in self.plan.picks]
        changes[change.row] = self.plan.changes()[change.row]
        found = [self._rows.run_double(call) for call in (self._picked, with_rows(self._picked, changes))]
        if any(outputs is None for outputs in found):
            return span
        before, after = (self._by_row(outputs) for outputs in found)
        if not before or len(before) != len(after) or before[0].values.shape != after[0].values.shape:
            return span
        moved = before[0].change(after[0], before[0].spread)[change.row].cpu()
        exact = moved.flatten(1).amax(1) if moved.ndim > 1 else moved
        return replace(span, change=exact) if len(exact) == len(span.change) else span

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
        if moved.ndim == 1 and len(moved) == length and self.plan.next_step:
            return moved
        return None

    def is_reached(self) -> bool | None:
        """Whether outputs are computed from the inputs; ``None`` where gradients can't tell."""
        changed = with_rows(self._picked, self.plan.changes())
        return is_reached(self._rows, self._picked, changed, len(self.plan.picks))

    def order(self) -> Order | None:
        """What another order did, where one was tried."""
        plan = self.plan
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

    def effects(self) -> dict[str, Effect]:
        """What a change of each further input did."""
        found = {}
        for path, row in self.plan.keys.items():
            change = max(float(moved[row].max()) for moved in self._moved())
            tensor = self._picked.tensors[path]
            mask = "mask" in path.rpartition(".")[2]
            constant = change == 0.0 and bool(
                is_constant(self._rows, self.plan.material, self._picked, self._before, [path])
            )
            found[path] = Effect(change, constant, mask, mask and bool((tensor == 0).any()))
        return found

    def features(self) -> Features | None:
        """Which features no output depends on: by gradient in as many rows as the cost allows, then by changing them."""
        plan, material = self.plan, self.plan.material
        values = self._picked.tensors[material.main]
        dim = feature_dim(values)
        spare = (_MOST_COST * material.rows - 2 * len(plan.picks)) // 3
        if material.tokens or not self._cut or plan.unaligned is not None or dim is None or spare < 1:
            return None
        few = material.call.take(plan.picks[: min(spare, len(plan.picks), _FEW_ROWS)], material.rows)
        return ignored_features(self._rows, (few, self._picked), material, self._before, dim)

    def variety(self) -> float | None:
        """How far outputs of different samples are apart, relative to their size.

        What is the same to rounding is looked at again: without nudges and with the statistics of these rows, since
        before training the running ones are not those of the data, values fade from layer to layer, and a nudge is
        large beside them; and in double precision.
        """
        given = self._picked.tensors[self.plan.material.main]
        if not bool((given != given[:1]).any()):
            return None
        found = _apart(self._outputs)
        if found > _ROUNDING:
            return found
        for kept in (False, True) if self._rows.keeps_statistics else (False,):
            with suppress(Broken):  # one value per channel, say
                again = self._rows.run(self._picked, batch_statistics=kept, nudge=False)
                found = max(found, _apart(self._by_row(again)))
        if found == 0.0:
            again = self._rows.run_double(self._picked)
            return None if again is None else _apart(self._by_row(again))
        return found


def _apart(outputs: Sequence[RowOutputs]) -> float:
    found = 0.0
    for output in outputs:
        values = torch.where(output.values.isfinite(), output.values, 0.0)
        apart = float((values - values[:1]).abs().max())
        found = max(found, apart / (float(values.abs().max()) or 1.0))
    return found
