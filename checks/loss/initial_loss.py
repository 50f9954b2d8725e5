"""A first loss that is far from what an uninformed model gets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.probes.loss_floor import LossFloor
from debugkit.probes.loss_start import LossStart, Start
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._misfed import is_misfed

_FAR = 3
_FEWEST_CLASSES = 5


@check
def initial_loss(
    starts: LossStart,
    floors: LossFloor | None,
    step: TrainingStep,
    *,
    max_ratio: Annotated[
        float, Field(gt=1, description="how many times the loss of a uniform guess the first loss may be")
    ] = 1.5,
    min_ratio: Annotated[
        float, Field(gt=0, lt=1, description="what share of the loss of the class frequencies it has to be")
    ] = 0.5,
    max_spread: Annotated[
        float,
        Field(gt=1, description="how many times as wide as the targets a regression's outputs may spread"),
    ] = 5.0,
) -> Iterator[Finding]:
    """A fresh model starts with a loss far above or below chance.

    Each loss call of the first step is compared with what the same call gives for a uniform guess (ln C for C
    classes, ln 2 for yes or no), or for the best constant in a regression. Only a fresh head is judged: its weights
    are independent draws and its bias is as an initialiser leaves it. A model that was trained may start anywhere.

    ## Why is this bad?
    A fresh classifier knows nothing, so its loss is ln C, give or take a tenth. A higher one means confident nonsense:
    outputs on the wrong scale, inputs that are not normalised, a bias that favours a class. The first steps are
    spent on shrinking the outputs, saturated units may never come back, and a sharp first gradient can end the run. A
    loss far below chance means that the labels reach the model by another way than through learning.

    ## What to do
    Initialise the last layer small (std 0.02, or 1 / sqrt(fan-in)) with a bias of 0 or of the class frequencies'
    logarithms, and normalise inputs. For a loss below chance look at how labels get into the inputs.

    ## Known limits
    Losses that are written out by hand are not judged, nor logits that are scaled similarities or have a margin for
    the true class, which start high by design. A loss below chance is judged from 5 classes on. In a regression only
    the spread of the outputs counts, not how far the targets are from 0.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    - https://arxiv.org/abs/1708.02002
    """
    if not starts.starts:
        raise Unavailable("the step calls no loss function of torch whose value for a uniform guess is known")
    judged = [start for start in starts.starts if not is_misfed(step, start.name, start.location)]
    if not judged:
        raise Unavailable("not judged: the loss gets the wrong kind of input; see `logits-vs-probs`")
    seen: dict[str, Finding] = {}
    for start in judged:
        finding = (
            _judge_values(start, max_spread)
            if start.kind == "values"
            else _judge_classes(start, _is_scaled(start, floors), max_ratio, min_ratio)
        )
        seen.setdefault(finding.message, finding)
    yield from seen.values()


def _judge_classes(start: Start, scaled: bool, max_ratio: float, min_ratio: float) -> Finding:
    told = f"{_name(start)} starts at {start.first:.3g}, where {_guess(start)} gets {start.chance:.3g}"
    above = min(start.first, start.expected) > max_ratio * start.chance
    below = start.first + 2 * start.error < min_ratio * start.prior
    excuse = ""
    if above:
        excuse = _by_design(start, scaled) or ("" if _is_judged(start) else _state(start))
    elif below and not start.untouched:
        excuse = _state(start)
    elif below and start.classes < _FEWEST_CLASSES:
        excuse = "too few classes to exclude luck"
    if excuse or not (above or below):
        return _measured(start, told, excuse)
    return warn(
        f"{told}: {_consequence(start, above)}",
        where=_module(start),
        location=start.location,
        hint=_hint(start)
        if above
        else "look for the labels among the inputs, or for targets that equal an input",
        loss=start.first,
        chance=start.chance,
    )


def _judge_values(start: Start, max_spread: float) -> Finding:
    told = f"{_name(start)} starts at {start.first:.3g}, where the best constant gets {start.chance:.3g}"
    wide = start.spread is not None and start.spread > max_spread and start.first > max_spread * start.chance
    if not wide or not _is_judged(start):
        return _measured(start, told, _state(start) if wide else "")
    return warn(
        f"{told}: the outputs spread {start.spread:.3g} times as wide as the targets",
        where=_module(start),
        location=start.location,
        hint=_hint(start),
        loss=start.first,
        chance=start.chance,
    )


def _measured(start: Start, told: str, excuse: str) -> Finding:
    return note(
        f"{told}; {excuse}" if excuse else told,
        location=start.location,
        loss=start.first,
        chance=start.chance,
    )


def _by_design(start: Start, scaled: bool) -> str:
    if scaled:
        return "similarities are scaled up by design"
    if start.knows_labels:
        return "a margin for the true class raises it by design"
    return "its architecture initialises it so" if start.own_scale else ""


def _is_judged(start: Start) -> bool:
    return start.state == "fresh" or (start.state == "unknown" and start.first > _FAR * start.chance)


def _consequence(start: Start, above: bool) -> str:
    if not above:
        return "the fresh model already knows the labels"
    who = "the fresh model is" if start.state == "fresh" else "the model is"
    return f"{who} sure of wrong answers, with outputs of up to {start.largest:.3g}"


def _hint(start: Start) -> str:
    if start.bias > 5:
        return f"initialise the bias of the last layer at 0; it has values of up to {start.bias:.3g}"
    if start.gain > 3:
        return "initialise the last layer smaller, with a standard deviation of 1 / sqrt(fan-in) or less"
    if start.features is not None and start.features > 5:
        return f"normalise what the last layer gets, which is {start.features:.3g} in size, starting with the inputs"
    if start.scaled_by:
        return f"leave out `{start.scaled_by}` between the last layer and the loss, which scales the outputs"
    return "bring the outputs to a size of about 1: normalise the inputs, initialise the last layer smaller"


def _is_scaled(start: Start, floors: LossFloor | None) -> bool:
    """Whether the outputs are kept within bounds, as scaled similarities are."""
    for floor in floors.floors if floors is not None else ():
        if floor.heads == start.heads and floor.name == start.name:
            return math.isfinite(floor.low) and math.isfinite(floor.high)
    return False


def _guess(start: Start) -> str:
    if start.kind == "binary":
        return "a guess of one half"
    return f"a uniform guess over {start.classes:,} classes"


def _state(start: Start) -> str:
    return (
        "the model is not fresh" if start.state == "trained" else "whether the model is fresh can't be told"
    )


def _name(start: Start) -> str:
    return f"`{start.name}`"


def _module(start: Start) -> str | None:
    return start.heads[0].rpartition(".")[0] or None if start.heads else None


def good() -> Target:
    return Target(mlp(classes=10), blobs(classes=10, samples=160), torch.nn.CrossEntropyLoss())


def good_regression() -> Target:
    return Target(mlp(classes=1), _sums(1.0), torch.nn.MSELoss())


def bad_last_layer_too_large() -> Target:
    model = mlp(classes=10)
    torch.nn.init.normal_(model[2].weight, std=3.0)  # type: ignore[arg-type]
    return Target(model, blobs(classes=10, samples=160), torch.nn.CrossEntropyLoss())


def bad_scaled_logits() -> Target:
    return Target(mlp(classes=10), blobs(classes=10, samples=160), lambda z, y: F.cross_entropy(100 * z, y))


def bad_inputs_not_normalised() -> Target:
    return Target(mlp(classes=1), _sums(100.0), torch.nn.MSELoss())


def _sums(scale: float) -> DataLoader[tuple[torch.Tensor, ...]]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(scale * x, x[:, :2].sum(1, keepdim=True)), batch_size=16, shuffle=True)
