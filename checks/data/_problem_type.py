"""transformers' choice of a loss for a sequence classifier, made from the labels' type and the number of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from debugkit import Finding, Target, fail, note
from debugkit.data.labels import Labels
from debugkit.probes.class_outputs import ClassOutputs
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep

_FEWEST = 16


def silent_choice(
    samples: Samples, target: Target, step: TrainingStep | None, outputs: ClassOutputs | None
) -> Iterator[Finding]:
    """Losses that a model chose by itself and that do not fit what the labels are.

    Only where ``config.problem_type`` is not set: one that is set was chosen by a person.
    """
    config: Any = getattr(target.model, "config", None)
    width = getattr(config, "num_labels", None)
    if (
        target.loss_fn is not None
        or not isinstance(width, int)
        or getattr(config, "problem_type", "") is not None
    ):
        return
    if step is None:
        yield from _floats(samples, outputs, width)
        return
    for call in step.loss_calls:
        if call.module is None or not call.connected:
            continue
        if call.name == "mse_loss" and width == 1 and _are_classes(samples.labels):
            yield from _regression(samples)
        elif call.name == "binary_cross_entropy_with_logits" and _are_one_hot(samples):
            yield from _multi_label(samples, width)


def _floats(samples: Samples, outputs: ClassOutputs | None, width: int) -> Iterator[Finding]:
    """One float per sample for several outputs: taken for several labels, which the step then fails on."""
    column = samples.rows.labels[0] if len(samples.rows.labels) == 1 else None
    if column is None or outputs is None or outputs.ran or outputs.count != width or width < 2:
        return
    if column.is_floating and all(shape in ((), (1,)) for shape in column.shapes):
        dtype = str(column.dtype).removeprefix("torch.")
        whole = samples.labels.kind == "classes"
        yield fail(
            f"each sample has one label in {dtype} and the model {width} outputs: it chooses multi-label classification for "
            "floating labels, which needs one value per output, and the step fails",
            where=samples.rows.name(column.samples[0], column.path),
            hint="pass class numbers as integers (`labels.long()`)"
            if whole
            else "load the model with `num_labels=1` for a regression",
            outputs=width,
        )


def _are_classes(labels: Labels) -> bool:
    """Whether values are numbers of classes: 0 and 1, or whole numbers from 0 without a gap."""
    if labels.kind != "classes" or labels.values is None or not labels.counts:
        return False
    found = sorted(labels.counts)
    return len(found) > 1 and found == list(range(len(found)))


def _regression(samples: Samples) -> Iterator[Finding]:
    classes = len(samples.labels.counts or {})
    if samples.labels.total < _FEWEST:
        yield note(
            f"the labels are {classes} classes in {samples.labels.total} samples, trained as a regression"
        )
        return
    yield fail(
        f"the labels are {classes} classes numbered 0 to {classes - 1} and `num_labels` is 1, so the model chose regression: "
        "the mean squared error to the class number is trained, not a classification",
        where="config.problem_type",
        hint=f"load the model with `num_labels={max(classes, 2)}` and pass integer labels; if regression is meant, set "
        '`problem_type="regression"`',
        classes=classes,
    )


def _are_one_hot(samples: Samples) -> bool:
    column = samples.rows.labels[0] if len(samples.rows.labels) == 1 else None
    if column is None or samples.labels.kind != "classes" or not column.is_floating:
        return False
    return all(len(shape) == 1 and shape[0] > 1 for shape in column.shapes)


def _multi_label(samples: Samples, width: int) -> Iterator[Finding]:
    total = samples.labels.total
    if total < _FEWEST:
        yield note(f"one of {width} labels is on in each of {total} samples, trained as independent labels")
        return
    yield fail(
        f"the labels are floats with exactly one of {width} on in each of {total:,} samples, so the model chose "
        "multi-label classification: each class is trained as a yes or no of its own, and they do not compete",
        where="config.problem_type",
        hint="pass the class number as an integer (`labels.argmax(-1)`); if independent labels are meant, set "
        '`problem_type="multi_label_classification"`',
        classes=width,
        samples=total,
    )
