"""A metric for which perfect predictions are not the best."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.loss.metric_reading import Reading
from debugkit.probes.metric_scores import MetricScores
from debugkit.testing import blobs, mlp


@check
def metric_sanity(scores: MetricScores) -> Iterator[Finding]:
    """The metric does not give perfect predictions its best value.

    The user's own loss tells which outputs are perfect. The metric is called with those, with the same answers given
    to other samples, and with one answer for all samples: the first must be best, in whichever direction.

    ## Why is this bad?
    The metric decides which checkpoint is kept and which run is called better. One that reads the wrong axis, compares
    a column with a row, counts padding as wrong or expects probabilities where it is given logits ranks models by
    chance, and the training itself shows nothing of it.

    ## What to do
    Call the metric by hand with predictions that are right, and look at the shapes that it compares.

    ## Known limits
    A number among several that is the same however predictions are dealt (a count, a mean) is told in a note, and so is
    one that is not best while another is. Swapped arguments of a symmetric metric, and a wrong average over classes, keep
    perfect predictions best and are not seen. Not judged where the loss has several parts or none of torch's losses is
    used.

    ## References
    - https://arxiv.org/abs/1910.11015
    - https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments.label_names
    """
    found = [*_judged(scores), *_halves(scores)]
    if not scores.misplaced:
        found += _diluted(scores)
    if not any(finding.level in ("warn", "fail") for finding in found):
        found += _unordered(scores)
    yield from found
    if not any(finding.level in ("warn", "fail") for finding in found):
        best = {name: reading for name, reading in scores.readings.items() if reading.verdict == "best"}
        told = "; ".join(_told(scores, name, reading) for name, reading in [*best.items()][:3])
        yield note(f"{scores.samples} samples: {told}", samples=scores.samples)


def _judged(scores: MetricScores) -> Iterator[Finding]:
    if scores.as_outputs is not None:
        name, reading = next(iter(scores.as_outputs.items()))
        decided = "outputs.argmax(-1)" if scores.kind == "classes" else "outputs > 0"
        yield warn(
            f"given the model's outputs, {_name(scores, name)} is {reading.perfect:.4g} for perfect predictions and "
            f"{_worse(reading)}; given the answers that they stand for, it works",
            hint=f"pass a metric that takes the outputs, such as `lambda outputs, y: metric({decided}, y)`",
            perfect=reading.perfect,
        )
        return
    if scores.misplaced:
        for name, (value, ahead) in scores.misplaced.items():
            yield _off(scores, name, value, ahead)
        return
    works = any(reading.verdict == "best" for reading in scores.readings.values())
    for name, reading in scores.readings.items():
        if reading.verdict == "best":
            continue
        if works:
            yield note(f"{_told(scores, name, reading)}", where=name)
        else:
            yield _broken(scores, name, reading)


def _broken(scores: MetricScores, name: str, reading: Reading) -> Finding:
    shown, where = _name(scores, name), name or None
    if reading.verdict == "no number":
        return warn(
            f"{shown} is {reading.perfect} for perfect predictions of {scores.samples} samples",
            where=where,
            hint="look for a division by zero, or the logarithm of a number that is not positive",
        )
    output, targets = scores.shapes
    shapes = "" if targets is None else f" (outputs {list(output)}, targets {list(targets)})"
    if reading.verdict == "constant":
        return fail(
            f"{shown} is {reading.perfect:.4g} whatever is predicted: for perfect predictions, for those of other samples "
            f"and for one answer for all{shapes}",
            where=where,
            hint="look for what the metric compares: a reduction over the wrong axis, or the targets with themselves",
            perfect=reading.perfect,
        )
    if reading.verdict == "blind":
        perhaps = scores.kind == "values" and output == targets and reading.perfect in (0.0, 1.0)
        make = (
            warn if perhaps else fail
        )  # a distance between distributions, or a mean error, is 0 for perfect ones
        return make(
            f"{shown} is {reading.perfect:.4g} for perfect predictions, and the same when these are given to other "
            f"samples: it does not compare a prediction with its own target{shapes}",
            where=where,
            hint="compare tensors of the same shape, of predictions in the same order as the targets",
            perfect=reading.perfect,
        )
    return fail(
        f"{shown} is {reading.perfect:.4g} for perfect predictions, and {_worse(reading)}: they are not told apart{shapes}",
        where=where,
        hint="look at the axis that it reduces, and at whether it takes logits, probabilities or class indices",
        perfect=reading.perfect,
        better=reading.better,
    )


def _off(scores: MetricScores, name: str, value: float, ahead: int) -> Finding:
    place = {0: "at its own position", 1: "of the next position"}.get(ahead, "of the position before")
    return fail(
        f"{_name(scores, name)} is {scores.readings[name].perfect:.4g} for what the loss calls perfect, and {value:.4g} for "
        f"outputs that predict the label {place}: it is off by a position",
        where=name or None,
        hint="compare `outputs[:, :-1]` with `labels[:, 1:]` where the loss shifts its labels, and only there",
        perfect=scores.readings[name].perfect,
    )


def _halves(scores: MetricScores) -> Iterator[Finding]:
    for name in scores.halves:
        yield fail(
            f"{_name(scores, name)} takes an output for a yes above 0.5, and the loss above 0: the outputs are logits, and "
            "0.5 is a probability of 62 %",
            where=name or None,
            hint="compare `outputs > 0`, or `outputs.sigmoid() > 0.5`",
        )


def _diluted(scores: MetricScores) -> Iterator[Finding]:
    for name, share in scores.diluted.items():
        yield fail(
            f"{_name(scores, name)} is {share:.4g} for perfect predictions, the share of targets that the loss does not "
            "ignore: ignored ones count as wrong",
            where=name or None,
            hint="leave out the positions whose target is ignored before comparing",
            perfect=share,
        )


def _unordered(scores: MetricScores) -> Iterator[Finding]:
    for found, make, whose in ((scores.shaken, fail, "perfect"), (scores.unordered, warn, "the model's")):
        for name, (given, reordered) in found.items():
            yield make(
                f"{_name(scores, name)} of {whose} outputs goes from {given:.4g} to {reordered:.4g} when the samples are "
                "put in another order, each with its own target",
                where=name or None,
                hint="compare each prediction with the target of the same sample, along the axis of the classes",
            )
        if found:
            return


def _told(scores: MetricScores, name: str, reading: Reading) -> str:
    shown = _name(scores, name)
    if reading.verdict == "constant":
        return f"{shown} is {reading.perfect:.4g} whatever is predicted"
    return (
        f"{shown} is {reading.perfect:.4g} for perfect predictions, {reading.wrong[0]:.4g} when these are given to other "
        "samples"
        if reading.wrong
        else f"{shown} is {reading.perfect:.4g} for perfect predictions"
    )


def _worse(reading: Reading) -> str:
    others = [value for value in (*reading.wrong, *reading.constant) if math.isfinite(value)]
    low, high = min(others), max(others)
    return f"{low:.4g} for all others" if low == high else f"{low:.4g} to {high:.4g} for worse ones"


def _name(scores: MetricScores, name: str) -> str:
    return f"`{name}`" if name else scores.name


def _accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    return float((logits.argmax(-1) == y).float().mean())


def good() -> Target:
    return Target(mlp(classes=3), blobs(classes=3), nn.CrossEntropyLoss(), metric=_accuracy)


def bad_wrong_axis() -> Target:
    def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
        return float((logits.argmax(0)[:, None] == y).float().mean())

    return Target(mlp(classes=3), blobs(classes=3), nn.CrossEntropyLoss(), metric=accuracy)


def bad_column_against_row() -> Target:
    def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
        return float(((logits > 0) == (y > 0.5)).float().mean())

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())

    return Target(mlp(classes=1), blobs(), loss, metric=accuracy)
