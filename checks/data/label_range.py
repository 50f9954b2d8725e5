"""Labels that do not fit the model's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.rows import Column, Rows
from debugkit.probes.class_outputs import ClassOutputs, is_whole
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._name_tables import disagreements
from ._problem_type import silent_choice
from ._target_values import meaningless, refused_type

_CERTAIN = 1e-3
_FEWEST_EACH = 20
_MOST_CLASSES = 1000


@check
def label_range(
    samples: Samples,
    target: Target,
    evaluation: EvalSamples | None,
    outputs: ClassOutputs | None,
    step: TrainingStep | None,
    *,
    min_unused: Annotated[
        int, Field(gt=0, description="outputs that no label uses, from which the check warns")
    ] = 1,
) -> Iterator[Finding]:
    """Labels that do not fit the model's outputs.

    Every scanned label is held against the number of outputs that the loss was seen to choose from. A transformers
    model that picks its loss by itself is asked which one it picked, and that is held against what the labels are.
    Names of classes are compared between `config.id2label`, `config.label2id` and the data set. Binary losses need
    targets from 0 to 1, margins -1 and 1.

    ## Why is this bad?
    A label without an output stops training when its sample comes up, on a GPU with an assertion that names nothing. An
    output without a label is at best wasted; more often the labels are counted from 1, or classes were lost on the way.
    A loss that was picked silently trains something else than what was meant, and permuted names make a good model
    look worse than chance.

    ## What to do
    Number classes 0 to C - 1 and give the model C outputs (`num_labels=C`). Mark samples without a label with the
    loss's `ignore_index`. Take `id2label` from the data set's own list.

    ## Known limits
    Outputs that no label uses are reported where all of the training data were read, in blocks at the ends or next to
    well filled classes; vocabularies are left out. Losses written by hand are not followed.

    ## References
    - https://github.com/huggingface/transformers/issues/12822
    - https://github.com/huggingface/datasets/issues/2457
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    path = outputs.path if outputs is not None else next((c.path for c in samples.rows.labels), "labels")
    found = [*disagreements(target, path), *silent_choice(samples, target, step, outputs)]
    if step is not None:
        found += meaningless(samples, step)
    if outputs is not None:
        found += _outside(samples, evaluation, outputs)
        if not found and not outputs.ran and (finding := refused_type(samples, target, outputs.count)):
            found.append(finding)
        if not any(finding.level == "fail" for finding in found):
            found += _used(samples, evaluation, outputs, min_unused)
    elif not found and step is not None:
        found += _values(samples, step)
    if not found:
        raise Unavailable(
            "no loss was seen to take the labels as numbers of classes, and neither model nor data set names classes"
        )
    yield from found


def _outside(samples: Samples, evaluation: EvalSamples | None, outputs: ClassOutputs) -> Iterator[Finding]:
    splits = [samples.rows, *([evaluation.rows] if evaluation is not None else [])]
    for rows in splits:
        column = rows.columns.get(outputs.path)
        if column is None or not is_whole(column):
            continue
        odd = [
            (sample, value) for sample, value in _labels(column, outputs) if not 0 <= value < outputs.count
        ]
        if samples.labels.kind == "tokens":
            odd = [(sample, value) for sample, value in odd if value < 0]
        if odd:
            yield _no_output(rows, column, odd, outputs)
            return


def _labels(column: Column, outputs: ClassOutputs) -> Iterator[tuple[int, int]]:
    """``(sample, label)`` for the smallest and the largest label that counts of each sample."""
    ignored = torch.tensor(sorted(outputs.ignored))
    for sample, value in zip(column.samples, column.values, strict=True):
        given = value.flatten().long()
        given = given[~torch.isin(given, ignored)] + outputs.added
        if given.numel():
            for extreme in {int(given.min()), int(given.max())}:
                yield sample, extreme


def _no_output(rows: Rows, column: Column, odd: list[tuple[int, int]], outputs: ClassOutputs) -> Finding:
    sample, value = odd[0]
    every = [label for _, label in _labels(column, outputs)]
    low, high = min(every), max(every)
    number = len({one for one, _ in odd})
    others = f", nor for those of {number - 1:,} other samples" if number > 1 else ""
    if low == 1 and high == outputs.count:
        said, hint = f"labels run from 1 to {high}", "subtract 1 from the labels: classes are counted from 0"
    elif high < outputs.count:
        said = f"labels go down to {low}"
        hint = (
            f"if {low} means no label, pass `ignore_index={low}` to the loss; otherwise number classes from 0"
        )
    elif low >= 0 and high == 255 and {label for _, label in odd} == {255}:
        said, hint = "labels include 255", "if 255 marks void pixels, pass `ignore_index=255` to the loss"
    else:
        said = f"labels run from {low} to {high}"
        hint = f"give the model {high + 1} outputs (`num_labels={high + 1}`), or renumber the labels from 0"
    return fail(
        f"{said} and there are {outputs.count} outputs (0 to {outputs.count - 1}): `{outputs.loss}` has no output for "
        f"label {value} of `{rows.name(sample)}`{others}",
        where=rows.name(sample, column.path),
        location=outputs.location,
        hint=hint,
        label=value,
        outputs=outputs.count,
        samples=number,
    )


def _used(
    samples: Samples, evaluation: EvalSamples | None, outputs: ClassOutputs, min_unused: int
) -> Iterator[Finding]:
    column = samples.rows.columns.get(outputs.path)
    if column is None:
        return
    seen = f"{samples.scanned:,} samples{'' if samples.complete else ' scanned'}"
    counts = np.zeros(outputs.count, dtype=np.int64)
    for value in column.values:
        given = value.flatten().long() + outputs.added
        given = given[(given >= 0) & (given < outputs.count)]
        counts += np.bincount(given.numpy(), minlength=outputs.count)
    used = np.flatnonzero(counts)
    if not len(used):
        yield note(f"no label of {seen} counts")
        return
    unused = sorted(set(range(outputs.count)) - set(used.tolist()) - _elsewhere(evaluation, outputs))
    block = _block(unused, counts)
    if samples.labels.kind != "classes" or not samples.complete or len(used) < 2 or len(block) < min_unused:
        yield note(
            f"labels {used[0]} to {used[-1]} in {seen}, for {outputs.count} outputs",
            outputs=outputs.count,
            used=len(used),
        )
        return
    shown = f"{block[0]} to {block[-1]}" if len(block) > 1 else str(block[0])
    from_one = block == [0] and len(used) == outputs.count - 1
    yield warn(
        f"{len(block)} of {outputs.count} outputs ({shown}) are the label of none of all {seen}, whose labels are "
        f"{used[0]} to {used[-1]}",
        where=outputs.path or None,
        location=outputs.location,
        hint="count classes from 0: subtract 1 from the labels and take one output away"
        if from_one
        else f"give the model as many outputs as there are classes (`num_labels={int(used[-1]) + 1}`), or look for the "
        "classes that were lost on the way to the loader",
        outputs=outputs.count,
        unused=len(block),
    )


def _elsewhere(evaluation: EvalSamples | None, outputs: ClassOutputs) -> set[int]:
    column = evaluation.rows.columns.get(outputs.path) if evaluation is not None else None
    if column is None:
        return set()
    return {int(label) + outputs.added for value in column.values for label in value.flatten().tolist()}


def _block(unused: list[int], counts: np.ndarray[Any, Any]) -> list[int]:
    """Unused outputs that chance or a rare class does not explain: a block at an end, or gaps between full classes."""
    total, width = int(counts.sum()), len(counts)
    if not unused or width > _MOST_CLASSES or (1 - len(unused) / width) ** total > _CERTAIN:
        return []
    gone = set(unused)
    top = next(place for place in range(width, -1, -1) if place - 1 not in gone)
    bottom = next(place for place in range(width + 1) if place not in gone)
    ends = [*range(bottom), *range(top, width)]
    filled = counts[counts > 0]
    if filled.min() >= _FEWEST_EACH:
        return unused
    expected = float(np.median(filled))
    return ends if len(ends) * expected > 10 and len(ends) == len(unused) and len(ends) > 1 else []


def _values(samples: Samples, step: TrainingStep) -> Iterator[Finding]:
    losses = {f"`{call.name}`" for call in step.loss_calls if call.connected and call.target is not None}
    ends = [end for column in samples.rows.labels for end in (*column.minimum, *column.maximum)]
    finite = [float(end) for end in ends if np.isfinite(end)]
    if losses and finite:
        yield note(
            f"targets from {min(finite):.4g} to {max(finite):.4g} in {samples.scanned:,} samples, for "
            f"{' and '.join(sorted(losses))}"
        )


def _labelled(y: torch.Tensor, features: int = 8) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Inputs that show their label in the first feature."""
    x = torch.randn(len(y), features, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 3 * y.float()
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def _cycle(samples: int, classes: int) -> torch.Tensor:
    return torch.arange(samples) % classes


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_ignored_labels() -> Target:
    y = _cycle(256, 2)
    y[::16] = -1
    loader = _labelled(y)
    return Target(mlp(), loader, torch.nn.CrossEntropyLoss(ignore_index=-1))


def bad_counted_from_one() -> Target:
    return Target(mlp(classes=3), _labelled(_cycle(240, 3) + 1), torch.nn.CrossEntropyLoss())


def bad_one_label_too_high() -> Target:
    y = _cycle(240, 3)
    y[123] = 3
    return Target(mlp(classes=3), _labelled(y), torch.nn.CrossEntropyLoss())


def bad_first_output_never_used() -> Target:
    return Target(mlp(classes=4), _labelled(_cycle(240, 3) + 1), torch.nn.CrossEntropyLoss())


def bad_ten_outputs_for_three_classes() -> Target:
    return Target(mlp(classes=10), _labelled(_cycle(240, 3)), torch.nn.CrossEntropyLoss())


def bad_targets_one_and_two() -> Target:
    y = _cycle(240, 2)
    x = torch.randn(240, 8, generator=torch.Generator().manual_seed(0)) + y[:, None]
    loader = DataLoader(TensorDataset(x, (y + 1).float()[:, None]), batch_size=32, shuffle=True)
    return Target(mlp(classes=1), loader, torch.nn.BCEWithLogitsLoss())


def _bert(labels: torch.Tensor, **options: Any) -> Target:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        **options,
    )
    ids = torch.randint(10, 60, (len(labels), 12), generator=torch.Generator().manual_seed(0))
    ids[:, 1] = 4 + (labels if labels.ndim == 1 else labels.argmax(1)).long()
    rows = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(rows, batch_size=16, shuffle=True)  # type: ignore[arg-type]
    return Target(BertForSequenceClassification(config).train(), loader)


def good_transformers() -> Target:
    return _bert(_cycle(64, 3), num_labels=3)


def bad_one_output_for_two_classes() -> Target:
    return _bert(_cycle(64, 2).float(), num_labels=1)


def bad_one_hot_floats() -> Target:
    return _bert(torch.eye(3)[_cycle(63, 3)], num_labels=3)


def bad_label2id_in_another_order() -> Target:
    return _bert(
        _cycle(64, 2),
        id2label={0: "negative", 1: "positive"},
        label2id={"positive": 0, "negative": 1},
    )
