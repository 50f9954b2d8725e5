"""A row that moves when only the others change: again with another number of rows, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from debugkit.data.batch import tensors
from debugkit.errors import Broken
from debugkit.tracing.edits import Material
from debugkit.tracing.influence import Mixing, Way
from debugkit.tracing.mixing import RowWatch, first_touch, value_flows
from debugkit.tracing.program import primary_output
from debugkit.tracing.root_call import RootCall
from debugkit.tracing.row_outputs import RowOutputs, row_outputs
from debugkit.trials.same_rows import SameRows, with_rows

Changes = Sequence[Mapping[str, torch.Tensor]]


def examine(
    rows: SameRows,
    model: torch.nn.Module,
    material: Material,
    picks: Sequence[int],
    changes: Changes,
    first: Mixing,
    tolerance: float,
    *,
    known_axis: bool,
) -> Mixing | None:
    """A second look at a row that moved.

    Args:
        rows: runs the passes.
        model: the model.
        material: what can be changed.
        picks: the rows of the first pass.
        changes: what was changed in each; nothing in the second.
        first: what the first look said.
        tolerance: what rounding explains.
        known_axis: whether the first dimension is certainly that of the samples.

    Returns:
        ``None`` where the row does not move again.
    """
    call = material.call
    if first.fixed:
        picked, more = call, changes
    else:
        picked = call.take([*picks, picks[-1]], material.rows)
        more = [*changes, {}]
    count = len(more)
    changed = with_rows(picked, more)
    watches = RowWatch(count, 1), RowWatch(count, 1)
    try:
        found = []
        for given, watch in zip((picked, changed), watches, strict=True):
            found.append(rows.run(given, watch=watch.inside(model)))
    except Broken:
        return Mixing(first.change, fixed=True)
    before, after = (row_outputs(one, count, material.length, rows.low) for one in found)
    if not before or len(before) != len(after) or before[0].values.shape != after[0].values.shape:
        return None
    moved = float(before[0].change(after[0], before[0].spread)[1].max())
    if moved <= tolerance:
        return None
    return Mixing(
        change=max(moved, first.change),
        way=_way(rows, picked, count, material),
        follows=_follows(before[0], count, first.fixed),
        fixed=first.fixed,
        along_second=not known_axis and not _mixes_along_second(rows, picked, material, before[0], tolerance),
        touch=first_touch(*watches, tolerance=tolerance),
    )


def _follows(output: RowOutputs, count: int, fixed: bool) -> bool:
    """Whether another dimension of an output is as long as there are rows."""
    return not fixed and count in output.values.shape[1:2]


def _way(rows: SameRows, picked: RootCall, count: int, material: Material) -> Way:
    def ask(outputs: Any, starts: list[torch.Tensor]) -> bool | None:
        found = _predictions(outputs, count, material)
        return None if found is None else value_flows(found, starts, own=1)

    flows = rows.differentiate(picked, count, ask)
    return "unknown" if flows is None else "values" if flows else "choices"


def _predictions(outputs: Any, count: int, material: Material) -> torch.Tensor | None:
    """The likely predictions ``[rows, ...]``, with their graph."""
    ordered = sorted(tensors(outputs), key=lambda item: item[1] is not primary_output(outputs))
    for _, tensor in ordered:
        if not tensor.is_floating_point() or tensor.ndim < 1 or not tensor.numel():
            continue
        if len(tensor) == count:
            return tensor
        if material.length is not None and len(tensor) == count * material.length:
            return tensor.reshape(count, material.length, *tensor.shape[1:])
    return None


def _mixes_along_second(
    rows: SameRows, picked: RootCall, material: Material, output: RowOutputs, tolerance: float
) -> bool:
    """Whether a change of the first column of every row moves the outputs of other columns."""
    given = picked.tensors[material.main]
    if (
        given.ndim < 2
        or output.values.ndim < 2
        or output.values.shape[1] != given.shape[1]
        or given.shape[1] < 2
    ):
        return False
    changed = given.detach().clone()
    changed[:, 0] = given[:, 0].roll(1, 0)
    try:
        after = row_outputs(
            rows.run(picked.with_tensors({material.main: changed})), len(given), material.length, rows.low
        )
    except Broken:
        return False
    if not after or after[0].values.shape != output.values.shape:
        return False
    return float(output.change(after[0], output.spread)[:, 1:].max()) > tolerance
