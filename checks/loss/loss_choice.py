"""A loss function that does not fit its targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.rows import Column
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.flow import RefusedLoss

from ._class_weights import inverted_positives, order_of
from ._codes import order_in_inputs
from ._targets import Supervised, supervised

_NUMERIC = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "multilabel_soft_margin_loss")
_ENOUGH = 32
_CLASSES = "use `cross_entropy` with one output per class and the class numbers as targets"


@check
def loss_choice(
    response: LossResponse,
    target: Target,
    step: TrainingStep | None,
    samples: Samples | None,
    *,
    min_samples: Annotated[
        int, Field(gt=1, description="samples from which on class weights are held against class counts")
    ] = 50,
) -> Iterator[Finding]:
    """A loss function that does not fit its targets.

    Every call of a loss function whose target comes from the batch is held against the values that it was given
    and against the labels of all scanned samples.

    ## Why is this bad?
    Squared errors on class numbers tell the model that class 3 lies between 2 and 4. Squared errors on one-hot
    rows give vanishing gradients where the model is confident and wrong. Binary losses on classes that exclude
    each other treat them as independent questions. Class weights in the wrong order punish the rare classes more.
    A void class that the loss does not ignore is learned as if it were real.

    ## What to do
    One class per sample: `cross_entropy` on class numbers. Several at once: `binary_cross_entropy_with_logits`.
    Amounts: `mse_loss` or `l1_loss`. Order class weights by class number, and pass `ignore_index` the value that
    the data uses.

    ## Known limits
    Whole numbers with an order (ratings, counts) are a note, as is everything where too little data was seen. A
    warning about class numbers needs inputs in which neighbouring numbers lie no closer than distant ones.
    Targets that the model gets as inputs, as in autoencoders, are not judged.

    ## References
    - https://docs.pytorch.org/docs/stable/nn.html#loss-functions
    - Humbatova et al. 2020, https://arxiv.org/abs/1910.11015
    """
    if response.refused is not None:
        yield _refused(response.refused)
        return
    if step is None:
        raise Unavailable("the step does not run on the whole first batch, so its loss calls can't be judged")
    judged = list(supervised(step, response, samples))
    if not judged:
        raise Unavailable(
            "no loss function of torch was seen to take its target from the labels, so there is nothing to judge"
        )
    for one in judged:
        if _picked_by_model(target, one):
            yield note(
                f"the model picked `{one.call.name}` itself, by the type of the labels; see `label-range`"
            )
            continue
        found = [*_fit(one, samples), *_weights(one, samples, min_samples), *_ignored(one)]
        yield from found or [_fits(one)]


def _picked_by_model(target: Target, one: Supervised) -> bool:
    """Whether a transformers model chose the loss by what the labels look like."""
    config: Any = getattr(target.model, "config", None)
    undecided = getattr(config, "problem_type", "") is None and hasattr(config, "num_labels")
    return undecided and one.call.module is not None and one.call.name != "cross_entropy"


def _fit(one: Supervised, samples: Samples | None) -> Iterator[Finding]:
    if one.call.name in _NUMERIC:
        yield from _numbers(one, samples)
    elif one.call.name in _BINARY:
        yield from _binary(one)
    elif one.call.name == "cross_entropy" and one.target.shape == one.call.input.shape:
        yield from _soft(one)


def _numbers(one: Supervised, samples: Samples | None) -> Iterator[Finding]:
    """Squared and absolute errors."""
    call, target = one.call, one.target
    dim = one.one_hot_over()
    classes = target.shape[dim] if dim is not None else 0
    if dim is not None and (one.made_from_classes or one.kind in ("classes", "pixels")) and _seen(one):
        yield warn(
            f"`{call.name}` compares with one-hot rows of {classes} classes: its gradient fades where the model is "
            "confident and wrong",
            location=call.location,
            hint=_CLASSES,
            classes=classes,
        )
        return
    single = torch.Size(call.input.shape).numel() == torch.Size(target.shape).numel() and (
        len(call.input.shape) == 1 or call.input.shape[1:] == (1,)
    )
    if not single or one.labels is None or one.column is None or not target.integral:
        return
    column = one.column
    counts = dict(one.labels.counts or {})
    coded = not column.is_floating and len(counts) > 2 and sorted(counts) == list(range(len(counts)))
    if not coded or one.kind != "classes" or samples is None:
        return
    told = f"`{call.name}` compares one output with the {len(counts)} class numbers of `{_named(column)}`"
    if order_in_inputs(samples.rows, column) == "unordered":
        yield warn(
            f"{told} as amounts, but samples with neighbouring numbers are no more alike than others",
            location=call.location,
            hint=_CLASSES,
            classes=len(counts),
        )
    else:
        yield note(f"{told} as amounts, which fits ratings and counts, not names", location=call.location)


def _named(column: Column) -> str:
    return f"batch{column.path}" if column.path.startswith("[") else column.path or "batch"


def _binary(one: Supervised) -> Iterator[Finding]:
    """Losses for labels that are on or off, each by itself."""
    call, target = one.call, one.target
    dim = one.one_hot_over()
    if dim is None or target.shape[dim] < 3:
        return
    classes = target.shape[dim]
    if one.made_from_classes or (one.kind in ("classes", "pixels") and _seen(one)):
        seen = (
            ""
            if one.labels is None or one.made_from_classes
            else f" in all {one.labels.total:,} samples seen"
        )
        yield warn(
            f"`{call.name}` takes {classes} labels of which exactly one is on{seen}: they exclude each other, and the "
            "loss treats them as independent",
            location=call.location,
            hint=_CLASSES,
            classes=classes,
        )


def _soft(one: Supervised) -> Iterator[Finding]:
    """Cross-entropy with one value per class."""
    call, (low, high) = one.call, one.target.row_sums
    if one.target.minimum < 0 or high > 1.01:
        what = (
            "rows in which several classes are on"
            if one.target.integral and one.target.minimum >= 0
            else f"values from {one.target.minimum:.3g} to {one.target.maximum:.3g}"
        )
        yield warn(
            f"`{call.name}` expects class numbers or rows of probabilities and was given {what} (row sums {low:.3g} to "
            f"{high:.3g})",
            location=call.location,
            hint="use `binary_cross_entropy_with_logits` for labels that can be on together; divide scores by their sum",
            row_sum=high,
        )


def _weights(one: Supervised, samples: Samples | None, enough: int) -> Iterator[Finding]:
    call, labels = one.call, one.labels
    if labels is None or samples is None or labels.total < enough:
        return
    counts = dict(labels.counts or {})
    if call.class_weights is not None and labels.kind in ("classes", "tags", "pixels"):
        order = order_of(call.class_weights, counts)
        shown = ", ".join(
            f"{number}: {count:,} x {call.class_weights[number]:.3g}"
            for number, count in sorted(counts.items(), key=lambda item: -item[1])[:4]
            if 0 <= number < len(call.class_weights)
        )
        if order in ("inverted", "other order"):
            told = (
                "grow with how often a class occurs"
                if order == "inverted"
                else "fit how often the classes occur, but in another order"
            )
            yield warn(
                f"the class weights of `{call.name}` {told} (class: count x weight; {shown})",
                location=call.location,
                hint="compute them by class number: `total / (classes * torch.bincount(labels))`",
            )
    if call.pos_weights is not None and labels.kind in ("classes", "multi-label"):
        on = [counts.get(1, 0)] if labels.kind == "classes" else [counts[key] for key in sorted(counts)]
        if labels.kind == "classes" and not set(counts) <= {0, 1}:
            return
        wrong = inverted_positives(call.pos_weights, on, labels.total)
        if wrong and 2 * len(wrong) >= len(on):
            first = wrong[0]
            weight = call.pos_weights[first if len(call.pos_weights) > 1 else 0]
            yield warn(
                f"`pos_weight` of `{call.name}` is inverted: {weight:.3g} where {on[first]:,} of {labels.total:,} are "
                "positive makes the larger side weigh more",
                location=call.location,
                hint="pass negatives / positives",
                labels=len(wrong),
            )


def _ignored(one: Supervised) -> Iterator[Finding]:
    call, labels = one.call, one.labels
    if call.name not in ("cross_entropy", "nll_loss") or labels is None or call.ignore_index is None:
        return
    index, classes = call.ignore_index, call.input.shape[call.class_dim]
    counts = dict(labels.counts or {})
    if labels.kind == "classes" and 0 <= index < classes and one.column is not None:
        hidden = sum(int((value == index).sum()) for value in one.column.values)
        if hidden:
            yield warn(
                f"`ignore_index={index}` of `{call.name}` is a class of the data: {hidden:,} of "
                f"{len(one.column.values):,} samples never count",
                location=call.location,
                hint="leave `ignore_index` at -100, or mark what should not count by a value that is no class",
                samples=hidden,
            )
    if labels.kind == "pixels" and len(counts) > 1:
        void, last = max(counts), sorted(counts)[-2]
        if void == 255 and last < 250 and index != void:
            yield warn(
                f"{counts[void]:,} pixels are 255, which marks what should not count, but `{call.name}` ignores {index}: "
                f"it is learned as a class of {classes}",
                location=call.location,
                hint="pass `ignore_index=255`",
            )


def _refused(refused: RefusedLoss) -> Finding:
    """A loss function that raised, where its arguments say why."""
    given, target = refused.given.get("input"), refused.given.get("target")
    weight, positive = refused.given.get("weight"), refused.given.get("pos_weight")
    by_channel = refused.name in ("cross_entropy", "nll_loss")
    if isinstance(given, torch.Tensor) and given.ndim:
        classes = given.shape[1] if by_channel and given.ndim > 1 else given.shape[-1]
        for name, value in (("weight", weight if by_channel else None), ("pos_weight", positive)):
            if isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) not in (classes, 1):
                return fail(
                    f"`{name}` of `{refused.name}` has {len(value)} values for {classes} outputs, so it raises",
                    location=refused.location,
                    hint="give one weight per output, in the order of the class numbers",
                )
        if by_channel and isinstance(target, torch.Tensor) and not target.is_floating_point():
            index = refused.given.get("ignore_index", -100)
            inside = (target >= 0) & (target < classes)
            outside = {*target[~inside & (target != index)].tolist()}
            void = next(iter(outside), index)
            if len(outside) == 1 and bool(inside.any()) and not 0 <= void <= classes:
                return fail(
                    f"targets of {void} mark what should not count, but `{refused.name}` ignores {index}: it raises",
                    location=refused.location,
                    hint=f"pass `ignore_index={void}`",
                )
    raise Unavailable(f"`{refused.name}` raised: {refused.error}")


def _seen(one: Supervised) -> bool:
    """Whether enough rows were seen to say that one value is always on."""
    return one.made_from_classes or (one.labels is not None and one.labels.total >= _ENOUGH)


def _fits(one: Supervised) -> Finding:
    target = one.target
    what = {
        "classes": "classes",
        "multi-label": "labels that can be on together",
        "tags": "tags",
        "tokens": "tokens",
        "pixels": "maps of classes",
        "values": "numbers",
    }.get(one.kind, f"targets in [{target.minimum:.3g}, {target.maximum:.3g}]")
    return note(f"`{one.call.name}` takes {what} as its target", location=one.call.location)


def _classes(samples: int = 64, classes: int = 4) -> DataLoader[tuple[torch.Tensor, ...]]:
    return blobs(samples, classes=classes)


def _imbalanced() -> DataLoader[tuple[torch.Tensor, ...]]:
    y = torch.tensor([0] * 160 + [1] * 60 + [2] * 30)
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    x[:, :3] += 3 * F.one_hot(y, 3)
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def good() -> Target:
    return Target(mlp(classes=4), _classes(), torch.nn.CrossEntropyLoss())


def good_class_weights() -> Target:
    weights = torch.tensor([250 / (3 * count) for count in (160, 60, 30)])
    return Target(mlp(classes=3), _imbalanced(), torch.nn.CrossEntropyLoss(weight=weights))


def bad_squared_error_on_one_hot() -> Target:
    return Target(mlp(classes=4), _classes(), lambda p, y: F.mse_loss(p, F.one_hot(y, 4).float()))


def bad_squared_error_on_class_numbers() -> Target:
    return Target(mlp(classes=1), _classes(128), lambda p, y: F.mse_loss(p[:, 0], y.float()))


def bad_binary_loss_on_classes() -> Target:
    return Target(
        mlp(classes=4),
        _classes(),
        lambda p, y: F.binary_cross_entropy_with_logits(p, F.one_hot(y, 4).float()),
    )


def bad_class_weights_by_count() -> Target:
    weights = torch.tensor([160.0, 60.0, 30.0]) / 250
    return Target(mlp(classes=3), _imbalanced(), torch.nn.CrossEntropyLoss(weight=weights))
