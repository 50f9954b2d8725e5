"""The inputs give the label away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.class_names import class_names
from debugkit.data.shares import percent
from debugkit.data.single_features import single_features
from debugkit.probes.batches import Batches
from debugkit.probes.cheap_model import CheapModel
from debugkit.probes.echo import Echo
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._copies import Copy, copies, reaches
from ._label_words import LabelWords, label_words
from ._telling_features import rescaled, rest_tells, shown, telling

_FEWEST = 32


@check
def label_leakage(
    samples: Samples,
    target: Target,
    batches: Batches,
    model: CheapModel | None,
    step: TrainingStep | None,
    echo: Echo | None,
    *,
    min_told: Annotated[
        float, Field(gt=0.5, le=1, description="the share of labels that one feature has to tell")
    ] = 0.98,
) -> Iterator[Finding]:
    """The inputs give the label away.

    Labels are held against every input, value by value: a column, a channel or the last step of a window that equals
    them in every sample is the label itself. So is a class name that stands in each text of its class and in no other.
    Then every feature is taken alone. One that tells nearly all labels is reported where the others tell them too,
    but far less well; where the others tell nothing, one feature is simply what the task is about.

    ## Why is this bad?
    The model learns to read the label, the loss goes to 0 and the evaluation looks perfect, since the evaluation data
    leak in the same way. In use the column is missing, or is not known yet, and nothing was learned from the rest.

    ## What to do
    Trace the column back to where it comes from. Drop the target from the table before it becomes the inputs, cut
    windows one step earlier than their targets, and build the prompt without the answer.

    ## Known limits
    A target that is the whole input is what an autoencoder learns from; it is reported only where the model's output
    for a step depends on that step and earlier ones alone. Leaks that are
    spread over many features show only as a perfect baseline (see `baselines`). Targets of language models are the
    business of `label-shift`.

    ## References
    - Kaufman et al. 2012, https://doi.org/10.1145/2382577.2382579
    - Kapoor, Narayanan 2023, https://doi.org/10.1016/j.patter.2023.100804
    """
    kind = samples.labels.kind
    if kind == "none":
        raise Unavailable("the batches hold no labels; a mapping needs `labels`, a tuple a second element")
    if kind == "tokens":
        raise Unavailable("the labels are tokens of a language model, which `label-shift` judges")
    if not samples.rows.inputs and not samples.rows.texts:
        raise Unavailable("the batches hold no inputs beside the labels that can be read sample by sample")
    found = []
    if model is not None and not model.certain:
        raise Unavailable(
            "which part of a batch is the label can't be told from its shape; give it the name `labels`"
        )
    if samples.origin != "last" or model is not None:
        found = list(_copied(samples, target, batches, step, model, echo))
    if not found and model is not None and model.task == "classes":
        found = [*_named(samples, model, target)] or [*telling(model, min_told)]
    elif not found and model is not None:
        found = [*rescaled(model)]
    yield from found or [_nothing_found(samples, model)]


def _copied(
    samples: Samples,
    target: Target,
    batches: Batches,
    step: TrainingStep | None,
    model: CheapModel | None,
    echo: Echo | None,
) -> Iterator[Finding]:
    for copy in copies(samples.rows):
        column = samples.rows.columns[copy.path]
        if samples.rows.count < _FEWEST:
            yield note(f"{_where(copy)} equals the labels in all {copy.samples} samples: too few to judge")
        elif copy.part is None and echo is not None and echo.copies and echo.path == copy.path:
            yield _copies_steps(copy, echo)
        elif copy.part is None and not _is_single(copy, samples):
            yield note(
                f"the labels are `{copy.path}` itself in all {copy.samples:,} samples, as for an autoencoder",
                samples=copy.samples,
            )
        elif copy.part is None and not reaches(copy.path, column, target, batches, step):
            yield note(f"`{copy.path}` equals the labels, and was not seen to go into the model")
        elif copy.tokens and (model is None or not _others_tell(model, copy)):
            yield note(
                f"{_where(copy)} is the label in all {copy.samples:,} samples, and the only thing that tells it"
            )
        else:
            yield fail(
                f"{_where(copy)} equals the label in all {copy.samples:,} samples: the model is given what it has to "
                "predict",
                where=samples.rows.name(0, copy.path),
                hint=_hint(copy),
                samples=copy.samples,
            )


def _copies_steps(copy: Copy, echo: Echo) -> Finding:
    return fail(
        f"the targets are `{copy.path}` itself in all {copy.samples:,} samples, and the model goes through it step by step: "
        f"its output for step {echo.step} depends on steps up to {echo.step} and on none after, so copying is all there "
        "is to learn",
        where=copy.path or None,
        hint="take the targets one step later: `x, y = series[:-1], series[1:]`",
        step=echo.step,
    )


def _is_single(copy: Copy, samples: Samples) -> bool:
    """Whether the labels are one number per sample, and there is more to predict it from."""
    label = samples.rows.columns[copy.label]
    return all(np.prod(shape, dtype=int) == 1 for shape in label.shapes) and len(samples.rows.inputs) > 1


def _where(copy: Copy) -> str:
    path = f"`{copy.path}`" if copy.path else "the input"
    return (
        f"{path}, {copy.part}," if copy.part and copy.part.startswith("value") else f"{path}{copy.part or ''}"
    )


def _hint(copy: Copy) -> str:
    if copy.part is not None and copy.part.startswith("["):
        return "take the target from the step after the window: `x = series[i : i + n]`, `y = series[i + n]`"
    return "drop the target from the table before it becomes the inputs; in a window, take the value after it"


def _others_tell(model: CheapModel, copy: Copy) -> bool:
    return rest_tells(model, single_features(model), 1.0) is not None


def _named(samples: Samples, model: CheapModel, target: Target) -> Iterator[Finding]:
    names = {**class_names(target.model, samples.labels), **model.train.answers.names}
    found = label_words(samples.rows, model.train.given, names, target)
    if found is None or found.texts < _FEWEST or found.own < 0.95 * found.texts:
        return
    if found.other > 0.05 * found.texts:
        return
    make = fail if found.own == found.texts and not found.other else warn
    yield make(
        f"{_share(found)} of {found.texts:,} texts name their own class, such as `{found.name}`, and "
        f"{percent(found.other / found.texts)} name another one: the answer stands in the question",
        where=samples.rows.name(found.example),
        hint="build the input text without the label; keep the label for `labels`",
        own=found.own,
        other=found.other,
        texts=found.texts,
    )


def _share(found: LabelWords) -> str:
    return percent(found.own / found.texts, both_ends=True)


def _nothing_found(samples: Samples, model: CheapModel | None) -> Finding:
    inputs = [column.path or "the input" for column in samples.rows.inputs] or [*samples.rows.texts]
    said = f"no part of {', '.join(f'`{path}`' for path in inputs[:4])} equals the labels in {samples.rows.count:,} samples"
    if model is None or model.task == "values":
        return note(said, samples=samples.rows.count)
    ranked = single_features(model)
    if not ranked:
        return note(said, samples=samples.rows.count)
    return note(
        f"{said}; the most telling single one of {len(ranked):,} features, {shown(ranked[0])}, tells "
        f"{percent(ranked[0].told)} of them",
        samples=samples.rows.count,
        told=ranked[0].told,
    )


def _table(samples: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight columns, of which three have something to do with the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (samples,), generator=generator)
    x = torch.randn(samples, 8, generator=generator)
    x[:, :3] += y[:, None]
    return x, y


def _target(x: torch.Tensor, y: torch.Tensor, classes: int = 2) -> Target:
    loss = torch.nn.CrossEntropyLoss() if classes > 1 else torch.nn.MSELoss()
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    return Target(mlp(features=x.shape[1], classes=classes), loader, loss)


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_one_telling_feature() -> Target:
    x, y = _table()
    return _target(torch.cat([x[:, 3:], torch.randn(400, 1) * 0.3 + 2 * y[:, None]], 1), y)


def _series() -> torch.Tensor:
    steps = torch.arange(300) / 7
    return torch.sin(steps) + 0.1 * torch.randn(300, generator=torch.Generator().manual_seed(0))


def good_next_step() -> Target:
    series = _series()
    x = torch.stack([series[i : i + 8] for i in range(288)])
    return _target(x, series[8:296, None], classes=1)


def bad_target_is_the_last_step() -> Target:
    series = _series()
    x = torch.stack([series[i : i + 8] for i in range(288)])
    return _target(x, series[7:295, None], classes=1)


class _Forecaster(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.GRU(1, 16, batch_first=True)
        self.head = torch.nn.Linear(16, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.head(self.body(series)[0])
        return states


def _windows(length: int) -> torch.Tensor:
    series = _series()
    return torch.stack([series[i : i + length] for i in range(288)])[..., None]


def good_each_next_step() -> Target:
    windows = _windows(12)
    loader = DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=32, shuffle=True)
    return Target(_Forecaster(), loader, torch.nn.MSELoss())


def bad_series_is_its_own_target() -> Target:
    windows = _windows(12)
    loader = DataLoader(TensorDataset(windows, windows), batch_size=32, shuffle=True)
    return Target(_Forecaster(), loader, torch.nn.MSELoss())


def bad_target_column_left_in() -> Target:
    x, y = _table()
    return _target(torch.cat([x, y[:, None].float()], 1), y)


def bad_scaled_target_column() -> Target:
    x, y = _table()
    column = (y.float() - y.float().mean()) / y.float().std()
    return _target(torch.cat([column[:, None], x], 1), y)


def bad_feature_made_from_the_label() -> Target:
    x, y = _table()
    made = 40 * y + 5 * torch.rand(400, generator=torch.Generator().manual_seed(1))
    return _target(torch.cat([x, made[:, None] / 40], 1), y)


def bad_token_at_the_end() -> Target:
    from transformers import BertConfig, BertForSequenceClassification

    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (256,), generator=generator)
    ids = torch.randint(10, 60, (256, 12), generator=generator)
    hint = torch.rand(256, generator=generator) < 0.5
    ids[hint, 3] = 4 + y[hint]
    ids = torch.cat([ids, 8 + y[:, None]], 1)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    rows = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": label}
        for i, label in zip(ids, y, strict=True)
    ]
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(rows, batch_size=32, shuffle=True)  # type: ignore[arg-type]
    return Target(BertForSequenceClassification(config).train(), loader)
