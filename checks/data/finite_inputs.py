"""NaN, infinity and huge values in the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.batch import tensors
from debugkit.data.rows import Column, Rows
from debugkit.probes.batches import Batches
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp

from ._nonfinite import Spoiled, is_added_mask, is_left_out, spoiled_columns

_SQUARE_OVERFLOWS = 1.8e19
_SPLITS = {"train": "training", "eval": "evaluation"}


@check
def finite_inputs(
    target: Target,
    sandbox: Sandbox,
    samples: Samples,
    batches: Batches,
    evaluation: EvalSamples | None,
    step: TrainingStep | None,
) -> Iterator[Finding]:
    """Inputs or targets hold NaN, infinity or values too large to compute with.

    Every value of the scanned samples of both splits is looked at. Masks of 0 and minus infinity that are added to
    attention scores are meant so. Where the step's loss and gradients stay finite with such a sample, it leaves
    those values out, and a note says so.

    ## Why is this bad?
    One NaN makes the loss NaN, its gradient makes every weight NaN, and nothing brings them back. Since it takes
    the one batch with the bad sample, training may run for hours first. In the evaluation split, one makes the
    metric NaN.

    ## What to do
    Find out where the values come from (a missing entry, a logarithm of 0, a division by a standard deviation of
    0), and fill or drop them. Where missing targets are expected, leave them out of the loss:
    `loss[~target.isnan()].mean()`.

    ## Known limits
    Of rows with more than 16,384 values all are counted, and some kept: which of them are NaN is not told then.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    - https://docs.pytorch.org/docs/stable/notes/autograd.html
    """
    splits = [samples.rows] + ([evaluation.rows] if evaluation is not None else [])
    findings = [*_outside_columns(samples.rows, batches, step)]
    if not findings and not any(rows.columns for rows in splits):
        raise Unavailable("the batches hold no numbers that can be read sample by sample")
    for rows in splits:
        for spoiled in spoiled_columns(rows):
            left_out = step is not None and is_left_out(spoiled, rows, target, sandbox, batches.first, step)
            findings.append(_judge(spoiled, rows, left_out))
        findings += _huge(target, rows)
    yield from findings
    if all(finding.level == "note" for finding in findings):
        yield _all_finite(splits)


def _judge(spoiled: Spoiled, rows: Rows, left_out: bool) -> Finding:
    path = spoiled.column.path
    count = len(spoiled.samples)
    where = rows.name(spoiled.samples[0], path)
    facts: dict[str, Any] = {"samples": count, "values": spoiled.values, "scanned": rows.count}
    if spoiled.is_mask:
        return note(
            f"`{path}` holds 0 and minus infinity only, as a mask that is added to attention scores does",
            where=where,
            **facts,
        )
    scanned = f"{rows.count:,} {_SPLITS[rows.split]} sample{'' if rows.count == 1 else 's'}"
    said = f"{count:,} of {scanned} {'holds' if count == 1 else 'hold'} {spoiled.kind}{_in(path)}"
    said += f", always at position {spoiled.place}" if spoiled.place else ""
    said += f" ({spoiled.values:,} values)" if spoiled.values > count else ""
    if left_out:
        return note(f"{said}; the step leaves them out: loss and gradients stay finite", where=where, **facts)
    return fail(
        f"{said}, the first is `{where}`: {_consequence(spoiled, rows)}",
        where=where,
        hint=_hint(spoiled),
        **facts,
    )


def _in(path: str) -> str:
    return f" in `{path}`" if path else ""


def _consequence(spoiled: Spoiled, rows: Rows) -> str:
    if rows.split == "eval":
        return "the evaluation loss becomes NaN or infinite"
    what = "targets" if spoiled.column.is_label else "inputs"
    return f"{what} like this make the loss and then every weight NaN"


def _hint(spoiled: Spoiled) -> str:
    if spoiled.place is not None:
        return (
            f"look at how the values at position {spoiled.place} are made: a missing entry, a logarithm of 0, or a "
            "division by a standard deviation of 0"
        )
    if spoiled.column.is_label:
        return "drop these samples, or leave them out of the loss: `loss[~target.isnan()].mean()`"
    return "fill or drop what is missing where the data is prepared"


def _outside_columns(rows: Rows, batches: Batches, step: TrainingStep | None) -> Iterator[Finding]:
    """What in the first batches has no entry per sample."""
    fine = step is not None and math.isfinite(step.loss)
    seen = set()
    for number, batch in enumerate(batches.items):
        for path, tensor in tensors(batch):
            if path in rows.columns or path in seen or tensor.is_meta:
                continue
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            values = (
                tensor.detach().coalesce().values() if tensor.layout is torch.sparse_coo else tensor.detach()
            )
            if values.layout is not torch.strided or bool(values.isfinite().all()):
                continue
            seen.add(path)
            if is_added_mask(values) or (fine and number == 0):
                yield note(
                    f"`{path}` holds values that are not finite, which the step leaves out", where=path
                )
                continue
            yield fail(
                f"`{path}` of batch {number} holds {int((~values.isfinite()).sum()):,} values that are NaN or infinite: "
                "they make the loss and then every weight NaN",
                where=f"train batch {number}.{path}",
                hint="fill or drop what is missing where the data is prepared",
                values=int((~values.isfinite()).sum()),
            )


def _huge(target: Target, rows: Rows) -> Iterator[Finding]:
    for column in rows.columns.values():
        if not column.is_floating or not len(column.values):
            continue
        sizes = np.maximum(np.abs(column.minimum), np.abs(column.maximum))
        if np.isnan(sizes).all():
            continue
        number = int(np.nanargmax(sizes))
        size = float(sizes[number])
        limit, what = _limit(target, column)
        if size <= limit or _has_two_values(column):
            continue
        yield warn(
            f"`{rows.name(column.samples[number], column.path)}` holds a value of {size:.3g}: {what}",
            where=rows.name(column.samples[number], column.path),
            hint="scale the values, or replace the number that stands for missing entries",
            largest=size,
        )


def _limit(target: Target, column: Column) -> tuple[float, str]:
    """Up to which size values can be computed with, and what happens beyond."""
    kinds = {parameter.dtype for parameter in target.model.parameters() if parameter.is_floating_point()}
    if not column.is_label and torch.float16 in (target.autocast_dtype, *kinds):
        return torch.finfo(
            torch.float16
        ).max, "it becomes infinite in float16, whose largest number is 65,504"
    if column.dtype is torch.float64 and torch.float64 in kinds:
        return math.sqrt(torch.finfo(torch.float64).max), "its square is infinite in float64"
    return _SQUARE_OVERFLOWS, "its square is infinite in float32"


def _has_two_values(column: Column) -> bool:
    """Whether the values are two numbers, as in a mask that is added to attention scores."""
    found = torch.cat([value.flatten()[:1024] for value in column.values[:64]]).tolist()
    return len({*found}) <= 2 and column.values[0].numel() > 1


def _all_finite(splits: list[Rows]) -> Finding:
    parts = []
    for rows in splits:
        floating = sum(column.is_floating for column in rows.columns.values())
        count = floating or len(rows.columns)
        keys = f"{count} key{'' if count == 1 else 's'}{'' if floating else ' of whole numbers'}"
        parts.append(f"{rows.count:,} {_SPLITS[rows.split]} samples x {keys}")
    facts: dict[str, Any] = {"scanned": sum(rows.count for rows in splits)}
    return note(f"no NaN or infinity that stops training in {' and '.join(parts)}", **facts)


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def _regression(x: torch.Tensor, y: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


def _linear_task() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    return x, x[:, :2] + 0.1 * torch.randn(256, 2, generator=generator)


def good_missing_targets_left_out() -> Target:
    x, y = _linear_task()
    y[::50, 1] = math.nan

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = ~targets.isnan()
        return torch.nn.functional.mse_loss(outputs[known], targets[known])

    return Target(mlp(), _regression(x, y), loss)


def bad_missing_entry() -> Target:
    x, y = _linear_task()
    x[137, 3] = math.nan
    return Target(mlp(), _regression(x, y), torch.nn.MSELoss())


def bad_logarithm_of_zero() -> Target:
    x, _ = _linear_task()
    counts = (x[:, :2] * 2).relu().round()
    return Target(mlp(), _regression(x, counts.log()), torch.nn.MSELoss())


def bad_missing_targets() -> Target:
    x, y = _linear_task()
    y[::50, 1] = math.nan
    return Target(mlp(), _regression(x, y), torch.nn.MSELoss())
