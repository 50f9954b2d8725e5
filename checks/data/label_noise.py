"""Labels are wrong, or belong to other inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.cheap_model import CheapModel
from debugkit.probes.pairing import Pairing
from debugkit.testing import blobs, mlp

from ._other_rows import Unexplained, at_chance
from ._renumbered import renumbered
from ._wrong_labels import wrong_labels

_SHOWN = 6


@check
def label_noise(
    model: CheapModel,
    pairing: Pairing | None,
    *,
    max_share: Annotated[
        float, Field(gt=0, lt=1, description="the share of wrong labels up to which nothing is said")
    ] = 0.1,
    min_samples: Annotated[
        int, Field(ge=50, description="different samples without which the share is not estimated")
    ] = 200,
) -> Iterator[Finding]:
    """Labels are wrong, or belong to other inputs.

    A linear model on cheap features (numbers as they are, bags of tokens or words) predicts each label from the
    other samples. Where it is right nearly everywhere, labels that contradict it and the neighbours as often where
    it is surest as where it is not are wrong labels; a hard task would contradict it where it is unsure. Where it
    is no better than chance, that alone proves nothing: the labels belong to other rows if they fit when moved by
    a few rows, if equal inputs agree no more than any two samples, if the evaluation split can be told from the
    same features, or if the inputs fall into groups exactly as large as the classes. The first batch is also held
    against its samples collated one by one, and classes against their numbers in the evaluation split.

    ## Why is this bad?
    Labels that belong to other inputs can only be memorised: the training loss falls, and the model is at chance
    on anything new. A share of wrong labels caps what can be reached and what can be measured.

    ## What to do
    Look at the listed samples. Inputs and labels that went through different shuffles, sorts or filters are the
    usual cause when nothing fits: index both with the same permutation, and join them by key.

    ## Known limits
    On images of many things, long texts and pairs of texts a cheap model is weak, and the check says that it can't
    tell. Wrong labels that are a function of the inputs (a rule that mislabels) look right to it.

    ## References
    - Northcutt, Jiang, Chuang 2021, https://arxiv.org/abs/1911.00068
    - Zhang et al. 2017, https://arxiv.org/abs/1611.03530
    """
    if pairing is not None and pairing.swapped:
        yield _swapped(pairing)
        return
    if model.task == "values":
        yield note(
            f"a linear model tells {percent(max(model.explained, 0.0))} of the variance of the targets from the inputs "
            f"of {len(model.train.answers):,} samples; wrong ones among continuous targets are not estimated",
            explained=model.explained,
        )
        return
    if at_chance(model):
        proofs = list(Unexplained(model).findings())
        yield from proofs or [_can_not_tell(model)]
        return
    if (finding := renumbered(model)) is not None:
        yield finding
        return
    yield _estimate(model, max_share, min_samples)


def _swapped(pairing: Pairing) -> Finding:
    sample, other = pairing.swapped[0]
    from_other = f" (that of `{other}`)" if other else ""
    return fail(
        f"{len(pairing.swapped)} of {pairing.compared} inputs of the first batch have another label than in the data "
        f"set, such as `{sample}`{from_other}: the batch holds inputs and labels in different orders",
        where=sample,
        hint="reorder inputs and labels together in `collate_fn`: sort the samples before you take them apart",
        swapped=len(pairing.swapped),
        compared=pairing.compared,
    )


def _can_not_tell(model: CheapModel) -> Finding:
    return note(
        f"a linear model tells {percent(model.accuracy)} of {len(model.train.answers):,} labels from their inputs, "
        f"always answering the largest class {percent(model.majority)}: the task is beyond it, or the labels are "
        "random; which of them can't be told from the data",
        accuracy=model.accuracy,
        majority=model.majority,
    )


def _estimate(model: CheapModel, max_share: float, min_samples: int) -> Finding:
    n = len(model.train.answers)
    told = f"a linear model tells {percent(model.accuracy)} of {n:,} labels from the other samples"
    if n < min_samples:
        return note(
            f"{told}; with fewer than {min_samples} samples the share of wrong labels is not estimated",
            accuracy=model.accuracy,
        )
    found = wrong_labels(model)
    if not found.trusted:
        return note(
            f"{told}: too few, or errors too uneven, to tell wrong labels from hard samples",
            accuracy=model.accuracy,
        )
    if found.least <= max_share:
        return note(
            f"{told}; about {percent(found.share)} of the labels contradict it where it is surest",
            accuracy=model.accuracy,
            share=found.share,
        )
    listed = "; ".join(_said(model, int(place)) for place in found.suspects[:_SHOWN])
    return warn(
        f"about {percent(found.share)} of the labels are wrong (at least {percent(found.least)}): where a linear "
        f"model is surest they contradict it and the neighbours, such as {listed}",
        where=model.train.name(int(found.suspects[0])),
        hint="look at the listed samples and at the step that assigned their labels",
        share=found.share,
        least=found.least,
        accuracy=model.accuracy,
        samples=[model.train.name(int(place)) for place in found.suspects[:50]],
    )


def _said(model: CheapModel, place: int) -> str:
    names = model.train.answers.names
    given, told = int(model.train.answers.values[place]), model.said(place)
    return f"`{model.train.name(place)}` (label `{names.get(given, given)}`, looks like `{names.get(told, told)}`)"


def _clusters(y: torch.Tensor, classes: int, seed: int = 0) -> torch.Tensor:
    """``[samples, 8]`` around one centre per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=generator) * 2
    return centres[y] + torch.randn(len(y), 8, generator=generator)


def _loader(x: torch.Tensor, y: torch.Tensor) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def _classes(samples: int, classes: int) -> torch.Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(1))


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_overlapping_classes() -> Target:
    y = _classes(600, 2)
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    x[:, :3] += y.float()[:, None]
    return Target(mlp(), _loader(x, y), torch.nn.CrossEntropyLoss())


def bad_labels_shuffled_apart() -> Target:
    y = _classes(240, 3)
    x = _clusters(y, 3)
    return Target(
        mlp(classes=3),
        _loader(x, y[torch.randperm(240, generator=torch.Generator().manual_seed(2))]),
        torch.nn.CrossEntropyLoss(),
    )


def bad_labels_moved_by_one_row() -> Target:
    y = _classes(400, 4)
    x = _clusters(y, 4)
    return Target(mlp(classes=4), _loader(x[:-1], y[1:]), torch.nn.CrossEntropyLoss())


def bad_a_quarter_is_wrong() -> Target:
    y = _classes(600, 3)
    x = _clusters(y, 3)
    wrong = torch.rand(600, generator=torch.Generator().manual_seed(3)) < 0.25
    y = torch.where(wrong, (y + 1) % 3, y)
    return Target(mlp(classes=3), _loader(x, y), torch.nn.CrossEntropyLoss())


def bad_collate_sorts_inputs_only() -> Target:
    y = _classes(128, 2)
    rows = list(zip(_clusters(y, 2), y, strict=True))

    def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        x = sorted((sample[0] for sample in samples), key=lambda row: float(row.sum()))
        return torch.stack(x), torch.stack([sample[1] for sample in samples])

    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=16,
        shuffle=True,
        collate_fn=collate,
    )
    return Target(mlp(), loader, torch.nn.CrossEntropyLoss())


def bad_classes_numbered_per_split() -> Target:
    y = _classes(400, 3)
    x = _clusters(y, 3)
    evaluation = _loader(x[300:], torch.tensor(np.array([2, 0, 1]))[y[300:]])
    return Target(
        mlp(classes=3), _loader(x[:300], y[:300]), torch.nn.CrossEntropyLoss(), eval_loader=evaluation
    )
