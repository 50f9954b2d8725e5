"""Inputs on a scale that layers can't work with, and splits prepared in different ways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.rows import Column, Rows
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp
from debugkit.tracing.entries import Entry

from ._arrival import arrivals, called, unit_axis
from ._scales import Limits, Problem, constant_units, problem_inside, problem_of
from ._splits import contradictions
from ._units import channels_of, is_image, units_of

_COLOURS = (1, 3, 4)


@check
def input_scale(
    samples: Samples,
    target: Target,
    step: TrainingStep | None,
    others: EvalSamples | None,
    *,
    max_std: Annotated[
        float, Field(gt=1, description="largest standard deviation that may reach a layer's weights")
    ] = 100,
    max_ratio: Annotated[
        float,
        Field(gt=1, description="how many times wider one column of a table may be spread than another"),
    ] = 1000,
    max_offset: Annotated[
        float, Field(gt=1, description="how many standard deviations a mean may be away from 0")
    ] = 10,
    sigmas: Annotated[
        float,
        Field(
            gt=1,
            description="standard deviations between the means of training and evaluation, or the factor between "
            "their spreads, that no same preparation gives",
        ),
    ] = 10,
) -> Iterator[Finding]:
    """Inputs are on a scale that layers can't work with, or differ between training and evaluation.

    Every numeric input is followed to the first weights that it meets in a traced step. Only values that arrive
    there as the loader gave them are judged: a model or a step that normalises them itself is fine.

    ## Why is this bad?
    Layers are initialised for inputs of mean 0 and standard deviation 1. Pixels in 0..255 make the first
    activations and their gradients hundreds of times too large, pixels divided by 255 twice make them vanish, and
    next to a column in the thousands no other column is heard. If only the training split is normalised, the loss
    falls and every evaluation is made on inputs that the model has never seen.

    ## What to do
    Images: divide by 255 once, then subtract the mean and divide by the standard deviation that the model was
    pretrained with. Tables: `StandardScaler` (fitted on the training split), `log1p` for prices and counts. Use one
    preparation for both splits, random augmentation apart.

    ## Known limits
    What a model that was compiled, scripted or written outside torch does first can't be seen; its inputs are
    measured and not judged. Splits whose values differ by less than a change of scale are not judged either: they
    may differ by nature.

    ## References
    - https://docs.pytorch.org/vision/stable/models.html
    - LeCun et al. 1998, Efficient BackProp, http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf
    """
    limits, rows = Limits(max_std, max_ratio, max_offset), samples.rows
    entries = step.entries if step else ()
    reported = set()
    if others is not None:
        for found in contradictions(rows, others.rows, sigmas):
            if target.training_step is not None and not arrivals(found.column, rows, entries):
                continue
            reported.add(found.column.path)
            yield (fail if found.whole else warn)(
                f"{_called(found.column)} is prepared differently in the two splits: {found.said}",
                where=found.column.path or None,
                location=None,
                hint="fit scaling and normalisation on the training split and apply it to both; only augmentation may "
                "differ",
                **found.measured,
            )
    quiet: list[str] = []
    taken: set[int] = set()
    for column in rows.inputs:
        reached = arrivals(column, rows, entries)
        taken |= {id(entry) for entry in reached}
        if not column.is_floating and not reached:
            continue
        problems = list(_problems(column, reached, limits))
        yield from problems
        if problems:
            reported.add(column.path)
        elif column.path not in reported:
            quiet.append(_measured(column, reached))
    for finding in _prepared_inside(rows, [entry for entry in entries if id(entry) not in taken]):
        reported.add("")
        yield finding
    if quiet:
        yield note(f"{rows.count:,} samples: {'; '.join(quiet[:4])}{_more(len(quiet) - 4)}")
    elif not reported:
        raise Unavailable(
            "no input is a number that a layer computes with (ids and masks have no scale), so there is nothing to "
            "judge"
        )


def _problems(column: Column, reached: list[Entry], limits: Limits) -> Iterator[Finding]:
    units = None
    for entry in reached:
        units = units_of(column, unit_axis(column, entry))
        problem = problem_of(column, units, limits) if units else None
        if problem:
            yield _finding(column, entry, problem)
            return
    units = units or units_of(column)
    if units is not None and column.is_floating and (constant := constant_units(units)):
        yield warn(
            f"{_called(column)} has {constant} in all {units.samples:,} samples: no model can learn from it",
            where=column.path or None,
            hint="look where it gets lost (a failed join, a wrong channel order, a fill value), or leave it out",
        )


def _prepared_inside(rows: Rows, entries: list[Entry]) -> Iterator[Finding]:
    """Images that the model or the step prepares, before a convolution takes them."""
    sizes = {math.prod(shape) for column in rows.inputs for shape in column.shapes if is_image(shape)}
    for entry in entries:
        sample = entry.sample
        if sample is None or entry.dims != 2 or sample.shape[1] not in _COLOURS or len(sample) < 2:
            continue
        if sample.shape[1:].numel() not in sizes or not is_image(sample.shape[1:]):
            continue
        if problem := problem_inside(channels_of(sample)):
            yield warn(
                f"what {called(entry)} gets {problem.said}: {problem.consequence}",
                where=entry.module,
                location=entry.location,
                hint=f"{problem.hint}; the loader's preparation and the model's own may do the same",
                **problem.measured,
            )


def _finding(column: Column, entry: Entry, problem: Problem) -> Finding:
    return warn(
        f"{_called(column)} {problem.said}, and {called(entry)} gets it as it is: {problem.consequence}",
        where=column.path or entry.module,
        location=entry.location,
        hint=problem.hint,
        **problem.measured,
    )


def _measured(column: Column, reached: list[Entry]) -> str:
    units = units_of(column)
    if units is None:
        return f"{_called(column)} holds no numbers"
    low, high = float(units.minimum.min()), float(units.maximum.max())
    mean = float((units.mean * units.counts).sum() / units.counts.sum())
    std = float(
        ((units.std.square() + (units.mean - mean).square()) * units.counts).sum() / units.counts.sum()
    )
    place = f", given to {called(reached[0])} as it is" if reached else ""
    return f"{_called(column)} in [{low:.3g}, {high:.3g}], mean {mean:.3g}, std {std**0.5:.3g}{place}"


def _called(column: Column) -> str:
    return f"`{column.path}`" if column.path else "the input"


def _more(count: int) -> str:
    return f"; {count} more inputs" if count > 0 else ""


def _labelled(x: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with a label that shows in the mean of their values."""
    means = x.flatten(1).double().mean(1)
    return x, (means > means.median()).long()


def _pixels(samples: int = 96, seed: int = 0) -> torch.Tensor:
    """Small coloured images ``[samples, 3, 8, 8]`` of levels 0..255, each with a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(samples, 3, 1, 1, generator=generator) * 200
    return (level + 55 * torch.rand(samples, 3, 8, 8, generator=generator)).round()


def _images(x: torch.Tensor, evaluated: torch.Tensor | None = None) -> Target:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 2)
        )
    loader = DataLoader(TensorDataset(*_labelled(x)), batch_size=16, shuffle=True)
    held_out = None if evaluated is None else DataLoader(TensorDataset(*_labelled(evaluated)), batch_size=16)
    return Target(model, loader, torch.nn.CrossEntropyLoss(), eval_loader=held_out)


def _standardised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - 0.45) / 0.25


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_images() -> Target:
    return _images(_standardised(_pixels()), _standardised(_pixels(seed=1)))


def good_normalised_in_the_model() -> Target:
    target = _images(_pixels())
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), target.model)
    return Target(model, target.train_loader, torch.nn.CrossEntropyLoss())


def bad_raw_pixels() -> Target:
    return _images(_pixels())


def bad_scaled_twice() -> Target:
    return _images(_pixels() / 255 / 255)


def bad_normalised_twice() -> Target:
    return _images((_standardised(_pixels()) - 0.45) / 0.25)


def bad_statistics_for_the_unit_interval_on_pixels() -> Target:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return _images((_pixels() - mean[:, None, None]) / std[:, None, None])


def bad_column_in_the_thousands() -> Target:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 8, generator=generator)
    x[:, 3] = 40_000 + 9_000 * x[:, 3]
    y = (x[:, 0] > 0).long()
    return Target(
        mlp(), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True), torch.nn.CrossEntropyLoss()
    )


def bad_only_training_normalised() -> Target:
    return _images(_standardised(_pixels()), _pixels(seed=1) / 255)
