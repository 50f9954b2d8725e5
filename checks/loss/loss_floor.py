"""A loss that can't become small, whatever the model learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.loss_floor import Floor, LossFloor
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

from ._misfed import is_misfed


@check
def loss_floor(
    floors: LossFloor,
    step: TrainingStep,
    *,
    max_share: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="how much of the way from a constant prediction to the lowest loss may be out of reach; half "
            "of it is worth a warning",
        ),
    ] = 0.1,
) -> Iterator[Finding]:
    """The output transform keeps the loss from becoming small, whatever the model learns.

    What lies between the model's last weights and the loss function (an activation, a clamp, a normalisation) is
    played again with extreme raw outputs. This shows between which bounds the loss can be given values, and within
    these bounds the lowest loss on a few samples is found. It is compared with the lowest loss without the transform,
    so that label smoothing, soft targets, masks and class weights do not count.

    ## Why is this bad?
    A loss with a floor looks like a model that stops learning. Cosine similarities as logits can't say that a class
    is likely: with 10 classes their cross-entropy stays above 0.77, and in practice above 1.6. A sigmoid, tanh or ReLU
    on the output of a regression can't reach targets outside its range, and the gradient vanishes on the way there.

    ## What to do
    Give the loss the raw outputs of the last layer. Where the transform is wanted, match it with the targets: scale
    the targets into its range, or scale its outputs (cosine similarities by 10 to 30, or by a learned factor).

    ## Known limits
    Only the bounds of each value count, not how values hang together: the real floor can be higher. A floor that a
    narrow layer or upsampling causes is not seen, nor one in a loss over classes that is written out by hand.
    Targets that the samples do not show are not judged.

    ## References
    - https://arxiv.org/abs/1704.06369
    - https://arxiv.org/abs/2204.00694
    - https://proceedings.mlr.press/v28/jaggi13.html
    """
    if not floors.floors:
        raise Unavailable(
            "the step calls no loss function of torch with predictions, and takes no difference from a target itself"
        )
    told: dict[str, Finding] = {}
    judged = False
    for floor in floors.floors:
        if floor.unjudged is None and not is_misfed(step, floor.name, floor.location):
            judged = True
            finding = _judge(floor, max_share)
            told.setdefault(finding.message, finding)
    if not judged:
        raise Unavailable(f"not judged: {_reason(floors.floors, step)}")
    yield from told.values()


def _judge(floor: Floor, max_share: float) -> Finding:
    if floor.share < max_share / 2:
        return note(_reach(floor), location=floor.location)
    make = fail if floor.share >= max_share else warn
    lowest = f"{floor.free:.3g}" if floor.free > 1e-3 else "0"
    return make(
        f"{_name(floor)} can't go below {floor.floor:.3g} whatever the model learns: {_transforms(floor)} {_keep(floor)} what "
        f"it is given {_bounds(floor)}; without that it could reach {lowest}, and a constant prediction gets "
        f"{floor.chance:.3g}",
        where=floor.heads[0].rpartition(".")[0] or None if floor.heads else None,
        location=floor.transform_location or floor.location,
        hint=_hint(floor),
        floor=floor.floor,
        share=floor.share,
    )


def _hint(floor: Floor) -> str:
    if {"normalize", "cosine_similarity"} & {*floor.transforms}:
        return "multiply the similarities by a scale of 10 to 30, or by a learned one, before the loss"
    if floor.name in ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"):
        return "give the loss the raw outputs of the last layer"
    return "leave the activation after the last layer out, or bring the targets into its range"


def _reach(floor: Floor) -> str:
    if floor.raw:
        head = floor.heads[0].rpartition(".")[0] if floor.heads else ""
        return f"{_name(floor)} gets raw outputs{f' (of `{head}`)' if head else ''}, which can take any value"
    if not floor.bounded:
        return f"{_name(floor)} can be given any value behind {_transforms(floor)}"
    return f"{_name(floor)} is given values {_bounds(floor)} by {_transforms(floor)}, which reach its lowest value"


def _name(floor: Floor) -> str:
    return "the difference from the target" if floor.name == "difference" else f"`{floor.name}`"


def _transforms(floor: Floor) -> str:
    names = [f"`{name}`" for name in dict.fromkeys(floor.transforms)]
    names = [*names[:2], "...", names[-1]] if len(names) > 4 else names
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _keep(floor: Floor) -> str:
    return "keep" if len(set(floor.transforms)) > 1 else "keeps"


def _bounds(floor: Floor) -> str:
    low, high = (f"{value:.3g}" for value in (floor.low, floor.high))
    if floor.low == float("-inf"):
        return f"below {high}"
    return f"above {low}" if floor.high == float("inf") else f"within [{low}, {high}]"


def _reason(floors: tuple[Floor, ...], step: TrainingStep) -> str:
    reasons = dict.fromkeys(floor.unjudged for floor in floors if floor.unjudged)
    told = (
        ["see `logits-vs-probs`"]
        if any(is_misfed(step, floor.name, floor.location) for floor in floors)
        else []
    )
    return "; ".join([*told, *(reason for reason in reasons if reason)])


def good() -> Target:
    return Target(mlp(classes=4), blobs(classes=4), torch.nn.CrossEntropyLoss())


def good_sigmoid_for_targets_between_0_and_1() -> Target:
    return Target(torch.nn.Sequential(mlp(classes=1), torch.nn.Sigmoid()), _shares(), torch.nn.MSELoss())


def good_scaled_cosine() -> Target:
    return Target(_Cosine(scale=20.0), blobs(classes=4), torch.nn.CrossEntropyLoss())


def bad_cosine_without_scale() -> Target:
    return Target(_Cosine(scale=1.0), blobs(classes=4), torch.nn.CrossEntropyLoss())


def bad_tanh_on_standardised_targets() -> Target:
    return Target(torch.nn.Sequential(mlp(classes=1), torch.nn.Tanh()), _scores(), torch.nn.MSELoss())


def bad_clamped_logits() -> Target:
    return Target(mlp(classes=4), blobs(classes=4), lambda z, y: F.cross_entropy(z.clamp(-1, 1), y))


class _Cosine(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body = mlp(classes=16)
        self.centres = torch.nn.Linear(16, 4, bias=False)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * F.linear(F.normalize(self.body(x)), F.normalize(self.centres.weight))


def _scores() -> DataLoader[tuple[torch.Tensor, ...]]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :2].sum(1, keepdim=True)
    return DataLoader(TensorDataset(x, (y - y.mean()) / y.std()), batch_size=16, shuffle=True)


def _shares() -> DataLoader[tuple[torch.Tensor, ...]]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :2].sum(1, keepdim=True).sigmoid()), batch_size=16, shuffle=True)
