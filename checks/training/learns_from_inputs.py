"""Samples that are memorised without their inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.probes.control_runs import ControlRuns
from debugkit.probes.dependence import Dependence
from debugkit.probes.overfit import OverfitRuns
from debugkit.testing import blobs, mlp
from debugkit.trials.blind import BlindRun
from debugkit.trials.curve import Curve


@check
def learns_from_inputs(
    runs: OverfitRuns, controls: ControlRuns, dependence: Dependence | None
) -> Iterator[Finding]:
    """A few samples are memorised just as well when all of them have the same inputs.

    The samples that `overfit-samples` memorises are trained on once more: every row keeps its label and gets the
    inputs of the first row. Whatever is learned now beyond the best answer that is the same for all rows can't come
    from the inputs. New labels and new noise then tell what it comes from.

    ## Why is this bad?
    A model that is given its labels (in a tuple that is unpacked too far, in features built from the whole batch) or
    that knows the place of a row in its batch (a position encoding along the wrong dimension, a parameter of the batch's
    size) reaches a loss of 0 in training, and has learned nothing that it can use elsewhere.

    ## What to do
    Look for where the labels enter `forward`, or for what is indexed by dimension 0.

    ## Known limits
    Judged for one label per row (or numbers, several per row) in torch's own losses. A decoder that is given the earlier
    labels of its row, a latent variable that is sampled from the label, and predictions that don't depend on the inputs at
    all are told in a note. Labels that are made from the inputs, as in an autoencoder, have no control of this kind.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    good, blind = runs.memorised, controls.blind
    if good is None or blind is None:
        raise Unavailable("the samples are not memorised with their inputs; see `overfit-samples`")
    if not blind.learned or blind.way in (None, "noise", "earlier labels"):
        yield note(_quiet(controls.samples, blind, good), steps=blind.steps)
    elif not blind.reads_inputs:
        yield note("the predictions depend on the labels and not on the inputs (see `input-dependence`)")
    elif blind.way == "labels":
        by = f" through `{controls.carrier}`" if controls.carrier else ""
        yield fail(
            f"{_told(controls.samples, blind, good)}: the labels reach the predictions{by}, and other labels change them",
            where=controls.carrier,
            hint="keep the labels out of what the predictions are computed from",
            missed=_missed(blind),
            floor=blind.floor,
        )
    elif dependence is not None and dependence.mixing is not None and dependence.mixing.change:
        yield note("rows are told apart by the other rows of their batch (see `batch-independence`)")
    elif not controls.drawn or blind.answers > 1:
        yield note(
            "rows with the same inputs get different predictions by their place in the batch, which may be a place in "
            "time here"
        )
    else:
        yield fail(
            f"{_told(controls.samples, blind, good)}: rows are told apart by their place in the batch",
            hint="look for what is indexed by dimension 0: a position encoding along it, a parameter or state of the "
            "batch's size",
            missed=_missed(blind),
            floor=blind.floor,
        )


def _told(samples: int, blind: BlindRun, good: Curve) -> str:
    if blind.last.kind == "classes":
        reached = f"{blind.last.errors:,} wrong of {blind.last.counted:,}"
        least = f"one answer for all has {blind.floor:.0f} wrong"
    else:
        reached, least = f"a loss of {blind.last.value:.3g}", f"one answer for all has {blind.floor:.3g}"
    return (
        f"{samples} samples that all have the inputs of the first are learned in {blind.steps} steps ({reached}, where "
        f"{least}), as the real ones are in {len(good.scores) - 1}"
    )


def _quiet(samples: int, blind: BlindRun, good: Curve) -> str:
    with_inputs = f"with their own they are memorised in {len(good.scores) - 1} steps"
    if blind.same:
        return (
            f"{samples} samples with the inputs of one get one answer in {blind.steps} steps; {with_inputs}"
        )
    if blind.way == "earlier labels":
        return (
            "a decoder is given the earlier labels of its row, so inputs can't be judged by leaving them out"
        )
    if blind.way == "noise":
        return (
            "predictions change with the noise that is drawn, so inputs can't be judged by leaving them out"
        )
    return f"{samples} samples with the inputs of one are not learned in {blind.steps} steps; {with_inputs}"


def _missed(blind: BlindRun) -> float:
    return float(blind.last.errors if blind.last.kind == "classes" else blind.last.value)


def good() -> Target:
    return Target(mlp(), blobs(), nn.CrossEntropyLoss())


class _Rows(nn.Module):
    """A classifier that adds something of each row's place, as a position encoding along dimension 0 does."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.body = mlp()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.places = nn.Parameter(torch.randn(rows, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x + self.places[: len(x)])
        return logits


def bad_place_in_the_batch() -> Target:
    return Target(_Rows(16), blobs(), nn.CrossEntropyLoss())


def bad_labels_among_the_features() -> Target:
    model = mlp(features=9)

    def step(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        logits = net(torch.cat([x, y[:, None].to(x.dtype)], 1))
        return nn.functional.cross_entropy(logits, y)

    return Target(model, blobs(), training_step=step)
