"""What trivial models reach, to hold the real one against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, check, note, warn
from debugkit.data.ridge import log_loss
from debugkit.data.shares import percent
from debugkit.probes.cheap_model import CheapModel
from debugkit.probes.samples import Samples, ignored_labels
from debugkit.testing import blobs, mlp

from ._constant_answers import constant_answer

_EXACT = 1e-6


@check
def baselines(
    samples: Samples,
    target: Target,
    model: CheapModel | None,
    *,
    min_samples: Annotated[
        int,
        Field(
            ge=100, description="samples that the linear model must get right, all of them, to be suspicious"
        ),
    ] = 1000,
) -> Iterator[Finding]:
    """What trivial models reach, to hold the real one against.

    The best constant answer, random answers, and a linear model on cheap features: numbers as they are, bags of
    tokens or words. The linear model judges each fifth of the training samples after being fitted to
    the others (copies of a sample count once), and the evaluation split after being fitted to all of them.

    ## Why is this bad?
    An accuracy of 92 % says nothing until it is known that the largest class has 91 %, or that a linear model on word
    counts reaches 94 %. A linear model that makes no mistake at all, or leaves nothing of continuous targets,
    usually means that the inputs hold the answer (see `label-leakage`), or that the data are not the task that was
    meant.

    ## What to do
    Write the figures beside your results: below the constant answer the model has learned nothing, below the linear
    one its depth does not pay. Where the linear model is perfect, look for what it reads: fit it on half of the
    features, then on the other half.

    ## Known limits
    Images, long texts and series are reduced to a few hundred features first. Labels per token and several labels per
    sample get the constant answer only. Up to 2,048 samples are read.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    - Hastie, Tibshirani, Buja 1994, https://doi.org/10.1080/01621459.1994.10476866
    """
    yield constant_answer(samples, ignored_labels(target))
    if model is None or not model.certain:
        return
    if model.task == "values":
        exact = 1 - model.explained < _EXACT and not _is_one_column(model)
        if exact and (seen := _judged(model)) >= min_samples:
            yield warn(
                f"a linear model on {model.train.features.matrix.shape[1]:,} cheap features is exact on {seen:,} samples "
                f"that it was not fitted to (it leaves {1 - model.explained:.0e} of the variance): the target is a sum "
                "over the inputs",
                hint="look for columns that the target was computed from; if they are meant, a linear model will do",
                explained=model.explained,
                samples=seen,
            )
        yield _linear_values(model)
        return
    if (mistakes := _mistakes(model)) == 0 and (seen := _judged(model)) >= min_samples:
        yield warn(
            f"a linear model on {model.train.features.matrix.shape[1]:,} cheap features makes no mistake on {seen:,} "
            "samples that it was not fitted to: the inputs hold the answer, or the task is trivial",
            hint="look for the feature that gives the label away; if the task is that easy, a linear model will do",
            mistakes=mistakes,
            samples=seen,
        )
    yield _linear_classes(model)


def _is_one_column(model: CheapModel) -> bool:
    """Whether a single feature is the target on another scale: a law of one variable, or what `label-leakage` says."""
    raw = model.train.features.raw.astype(np.float64)
    columns, values = raw - raw.mean(0), model.train.answers.values - model.train.answers.values.mean()
    sizes = np.sqrt((columns**2).sum(0) * (values**2).sum())
    return bool((np.abs(values @ columns) > (1 - _EXACT) * np.maximum(sizes, 1e-300)).any())


def _mistakes(model: CheapModel) -> int:
    wrong = int((model.left_out.argmax(1) != model.train.codes).sum())
    if model.evaluation is not None and model.predicted is not None:
        wrong += int((model.predicted.argmax(1) != model.evaluation.codes).sum())
    return wrong


def _judged(model: CheapModel) -> int:
    return len(model.train.codes)


def _linear_classes(model: CheapModel) -> Finding:
    n = len(model.train.codes)
    said = (
        f"a linear model on {model.train.features.matrix.shape[1]:,} cheap features: {percent(model.accuracy)} right, "
        f"loss {model.loss:.3f}, on {n:,} training samples, cross-validated"
    )
    other = model.evaluation
    if other is None or model.predicted is None or not (known := other.codes >= 0).any():
        return note(said, accuracy=model.accuracy, loss=model.loss)
    predicted, codes = model.predicted[known], other.codes[known]
    right = float((predicted.argmax(1) == codes).mean())
    loss = log_loss(predicted, codes)
    return note(
        f"{said}; {percent(right)} right, loss {loss:.3f}, on {len(codes):,} evaluation samples",
        accuracy=model.accuracy,
        loss=model.loss,
        evaluation_accuracy=right,
        evaluation_loss=loss,
    )


def _linear_values(model: CheapModel) -> Finding:
    said = (
        f"a linear model on {model.train.features.matrix.shape[1]:,} cheap features: mean squared error {model.loss:.4g} "
        f"(R² {model.explained:.3f}) on {len(model.train.answers):,} training samples, cross-validated"
    )
    other = model.evaluation
    if other is None or model.predicted is None:
        return note(said, loss=model.loss, explained=model.explained)
    error = float(((model.predicted - other.answers.values) ** 2).mean())
    return note(
        f"{said}; {error:.4g} on {len(other.answers):,} evaluation samples",
        loss=model.loss,
        explained=model.explained,
        evaluation_loss=error,
    )


def _labels(samples: int) -> torch.Tensor:
    return torch.randint(2, (samples,), generator=torch.Generator().manual_seed(0))


def _target(x: torch.Tensor, y: torch.Tensor) -> Target:
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    return Target(mlp(features=x.shape[1]), loader, torch.nn.CrossEntropyLoss())


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_overlapping_classes() -> Target:
    y = _labels(1200)
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(1))
    x[:, :2] += 2 * y[:, None]
    return _target(x, y)


def bad_label_is_spread_over_the_columns() -> Target:
    y = _labels(1200)
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(1))
    x[:, 3] = 6 * (2 * y - 1) - x[:, :3].sum(1) - x[:, 4:].sum(1)
    return _target(x, y)
