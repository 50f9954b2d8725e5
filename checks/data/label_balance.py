"""One class outnumbers another, or stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, note
from debugkit.data.labels import Labels
from debugkit.probes.label_use import DECLARED, LabelUse, Use
from debugkit.probes.samples import Samples
from debugkit.testing import blobs, mlp

from ._class_counts import ClassCounts, FoundLabels


@check
def label_balance(
    samples: Samples,
    target: Target,
    use: LabelUse | None,
    *,
    max_ratio: Annotated[
        float,
        Field(gt=1, description="how many samples of the largest class may come on one of the smallest"),
    ] = 10,
) -> Iterator[Finding]:
    """One class outnumbers another, or stands alone.

    Classes are counted as the loader gives them, so a sampler that balances them counts. Where the loader was
    not read to its end, the ratio is the one that the counts prove (99 % confidence), not the one they show. For
    tagged tokens the most frequent tag is the background and stays out of the ratio; for labels that can be on
    together each is held against its own share of "off", allowing more the more labels there are.

    ## Why is this bad?
    With a single class a constant answer is perfect, the loss goes to 0 at once, and nothing is learned. With
    99 : 1 the constant answer is right 99 % of the time: the loss and the accuracy look good, and the small class
    is never predicted.

    ## What to do
    A single class is nearly always a mistake on the way from the file to the loader: look at the labels there. An
    imbalance that the task has by nature is met by weights in the loss (`CrossEntropyLoss(weight=...)`,
    `BCEWithLogitsLoss(pos_weight=...)`) or by a `WeightedRandomSampler`, and by a metric per class.

    ## Known limits
    Targets of a language model or a generator, continuous targets and maps of pixels are not held to a ratio. With
    a `training_step` only what a torch loss takes as its classes counts as a label, wherever it is in the
    batch; labels in a loss written by hand are counted and not judged. A loss that weighs classes is
    recognised where the step runs on the first batch, or by its `weight` attribute.

    ## References
    - https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler
    - Buda et al. 2018, https://arxiv.org/abs/1710.05381
    """
    for found in _labels(samples, use):
        yield from _judge(found, samples, target, max_ratio)


def _labels(samples: Samples, use: LabelUse | None) -> Iterator[FoundLabels]:
    """What the step takes as labels; where that was not followed, what the batch's shape suggests."""
    suggested = samples.representative
    if use is None or samples.origin == "given":
        yield FoundLabels(suggested, use.sources.get(DECLARED) if use else None)
        return
    chosen = [
        path
        for path, one in use.sources.items()
        if one.is_label and path in samples.candidates and samples.candidates[path].total
    ]
    for path in chosen:
        yield FoundLabels(samples.candidates[path], use.sources[path], path)
    generated = any(
        one.class_target and one.in_predictions and samples.candidates[path].kind in ("tokens", "tags")
        for path, one in use.sources.items()
        if path in samples.candidates
    )
    if not chosen:
        yield FoundLabels(Labels("tokens") if generated else suggested, use.sources.get(DECLARED, Use()))


def _judge(found: FoundLabels, samples: Samples, target: Target, max_ratio: float) -> Iterator[Finding]:
    labels, use = found.labels, found.use
    if labels.kind in ("none", "other"):
        raise Unavailable(
            "the batches hold no labels that can be counted; a mapping needs `labels`, a tuple a tensor at its end"
        )
    numeric = use is not None and use.numeric
    guessed = use is not None and samples.origin != "given" and not use.is_label
    if labels.kind == "values" or (numeric and (guessed or len(labels.counts or ()) > 2)):
        raise Unavailable("the targets are continuous numbers, so there are no classes to count")
    if labels.kind == "tokens" or (use is not None and use.class_target and use.in_predictions):
        yield note(f"the labels of {samples.scanned:,} samples are tokens to generate, skewed by nature")
        return
    if not labels.total:
        raise Unavailable(
            f"every label in {samples.scanned:,} samples is ignored, so there is nothing to count"
        )
    counts = ClassCounts(samples, found, target, max_ratio)
    if guessed or (use is None and not _is_plain(samples, labels)):
        yield counts.no_verdict()
    elif labels.kind == "multi-label":
        yield from counts.each_label()
    else:
        yield from counts.classes()


def _is_plain(samples: Samples, labels: Labels) -> bool:
    """Whether the batch's shape alone says that these are labels."""
    return samples.origin in ("given", "named") or (
        samples.origin == "pair" and labels.kind in ("classes", "multi-label")
    )


def _labelled(y: torch.Tensor, batch_size: int = 32) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Inputs that show their label in the first feature."""
    x = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 3 * y.float().flatten()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)


def _with_minority(samples: int, minority: int) -> torch.Tensor:
    return (torch.arange(samples) < minority).long()


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_three_classes() -> Target:
    return Target(mlp(classes=3), blobs(96, classes=3), torch.nn.CrossEntropyLoss())


def bad_single_class() -> Target:
    return Target(mlp(), _labelled(torch.zeros(256, dtype=torch.long)), torch.nn.CrossEntropyLoss())


def bad_one_in_a_hundred() -> Target:
    return Target(mlp(), _labelled(_with_minority(1000, 10)), torch.nn.CrossEntropyLoss())


def bad_binary_floats() -> Target:
    loader = _labelled(_with_minority(600, 20).float().unsqueeze(1))
    return Target(mlp(classes=1), loader, torch.nn.BCEWithLogitsLoss())


def bad_label_never_on() -> Target:
    y = (torch.rand(256, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    y[:, 2] = 0
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    x[:, :4] += 3 * y
    return Target(
        mlp(classes=4),
        DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True),
        torch.nn.BCEWithLogitsLoss(),
    )
