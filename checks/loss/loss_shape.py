"""Predictions are held against the targets of other samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.loss.losses import ELEMENTWISE, LossCall
from debugkit.loss.mixups import Crossing, Misread
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.testing import blobs, mlp

_COUNTED = ("classes", "multi-label", "tags", "pixels")
_CLASS_LOSSES = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")


@check
def loss_shape(
    target: Target, response: LossResponse, step: TrainingStep | None, samples: Samples | None
) -> Iterator[Finding]:
    """Predictions are held against the targets of other samples.

    The step runs once on a few samples while every operation is watched. What the labels do in the loss is then
    computed again with the labels in another order: a loss that stays the same can't know which label belongs to
    which prediction. Reshapes on the way into a loss are followed element by element.

    ## Why is this bad?
    Shapes `[N, 1]` and `[N]` broadcast to `[N, N]`: every prediction is compared with every target, and the best
    the model can do is to predict their mean. A `view` where a `transpose` is needed builds the logits of one
    position out of those of several. Nothing crashes, and the loss falls a little.

    ## What to do
    Give predictions and targets the same shape (`squeeze(-1)` or `unsqueeze(-1)`). `cross_entropy` takes the
    classes in dim 1: `transpose` or `permute` logits `[N, T, C]`, or flatten them to `[N * T, C]`.

    ## Known limits
    Losses that compare all samples with each other on purpose (contrastive, ranking, maximum mean discrepancy) also
    compare samples of one kind with themselves, by which they are told. Losses outside torch are seen by their
    answer to other labels only, where they go to `loss_fn`.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/broadcasting.html
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    if response.refused is not None:
        raise Unavailable(
            f"`{response.refused.name}` raised, so its shapes can't be judged: {response.refused.error}"
        )
    if response.returned is not None:
        raise Unavailable(f"{response.returned}; see `loss-connected`")
    crossed = [crossing for crossing in response.crossings if _is_mistake(crossing)]
    for crossing in {one.location or one.name: one for one in reversed(crossed)}.values():
        yield _crossing(crossing)
    for one in {one.location: one for one in response.misread}.values():
        yield _misread(one)
    widened = [] if crossed or step is None else list(_widened(step))
    yield from widened
    if response.misplaced is not None and not (crossed or response.misread):
        yield _misplaced(response.misplaced)
    if crossed or response.misread or widened or response.misplaced is not None:
        return
    if response.labels == "unpaired":
        yield _unpaired(response, samples)
    elif response.labels == "unused":
        yield _unused(target, response)
    elif response.labels == "paired":
        yield note(
            f"each prediction meets its own label: other labels for {response.rows} samples change the loss"
        )
    elif response.rows < 2:
        raise Unavailable("the first batch holds one sample, which has no other labels to be compared with")
    else:
        seen = [f"`{term.name}`" for term in response.terms]
        if not seen:
            raise Unavailable("nothing on the way to the loss was seen to compare predictions with the batch")
        yield note(f"no comparison mixes up samples ({', '.join(dict.fromkeys(seen))})")


def _is_mistake(crossing: Crossing) -> bool:
    return crossing.blind and not (crossing.widened and crossing.deliberate)


def _crossing(crossing: Crossing) -> Finding:
    one, other = crossing.shapes
    return fail(
        f"`{crossing.name}` gets {one} and {other}, which broadcast: each of N predictions is compared with all N "
        "targets, and the best answer is their mean",
        location=crossing.location,
        hint="give both the same shape: `outputs.squeeze(-1)`, or `targets.unsqueeze(-1)`",
    )


def _misread(one: Misread) -> Finding:
    shown = f"{list(one.origin)} was reshaped to {list(one.shape)}"
    if one.kind == "classes":
        return fail(
            f"`{one.name}` gets rows of logits that are put together from several positions: {shown}, which does not "
            "move the classes",
            location=one.location,
            hint="move the axis with `transpose` or `permute`, then flatten; `view` and `reshape` only cut anew",
        )
    if one.kind == "axis":
        return warn(
            f"`{one.name}` takes dim 1 of {list(one.shape)} as the classes, where the last layer puts the positions: both "
            "are as long, so nothing raises",
            location=one.location,
            hint="pass `logits.transpose(1, 2)`, or flatten logits and labels",
        )
    return fail(
        f"`{one.name}` holds predictions of one sample against labels of another: {shown}, and the labels run in "
        "another order",
        location=one.location,
        hint="bring the batch to the front with `transpose` before flattening",
    )


def _widened(step: TrainingStep) -> Iterator[Finding]:
    """Calls of elementwise losses whose two sides differ in shape."""
    for call in {call.location or call.name: call for call in step.loss_calls}.values():
        if call.name not in ELEMENTWISE or call.target is None or not call.connected:
            continue
        given, wanted = call.input.shape, call.target.shape
        together = tuple(max(a, b) for a, b in zip_longest(given[::-1], wanted[::-1], fillvalue=1))[::-1]
        size = math.prod(together)
        if math.prod(wanted) in (1, size) and math.prod(given) == size:
            continue
        if _is_crossed(call):
            yield _crossing(
                Crossing(call.name, (str([*given]), str([*wanted])), call.location, False, True, False)
            )
            continue
        yield warn(
            f"`{call.name}` gets {list(given)} and {list(wanted)}, which broadcast to {list(together)}: values are "
            "compared with targets that are repeated",
            location=call.location,
            hint="give both the same shape; expand the target where it is meant to be repeated",
        )


def _is_crossed(call: LossCall) -> bool:
    """Whether the batch, which is first on both sides, meets itself."""
    given, wanted = call.input.shape, call.target.shape if call.target else ()
    rows = given[0] if given else 1
    return rows > 1 and ((given, wanted) in (((rows, 1), (rows,)), ((rows,), (rows, 1))))


def _misplaced(rows: tuple[tuple[int, ...], tuple[int, ...]]) -> Finding:
    led, met = (", ".join(map(str, each)) for each in rows)
    return fail(
        f"predictions are compared with the labels of other samples: the inputs of the first {len(rows[0])} samples lead "
        f"to the predictions {led}, and their labels stand against the predictions {met}",
        hint="put inputs and labels in the same order: whatever sorts or shuffles one has to do so with the other",
    )


def _unpaired(response: LossResponse, samples: Samples | None) -> Finding:
    told = (
        f"the loss stays the same when the labels of {response.rows} samples change places, though it depends on "
        "them: it does not know which label belongs to which prediction"
    )
    hint = "compare predictions and labels sample by sample before averaging"
    if any(crossing.deliberate for crossing in response.crossings):
        return note(told)
    if samples is not None and samples.labels.kind in _COUNTED:
        return fail(told, hint=hint)
    return warn(told, hint=hint)


def _unused(target: Target, response: LossResponse) -> Finding:
    told = f"the loss of {response.rows} samples does not depend on their labels"
    classes = [term for term in response.terms if term.name in _CLASS_LOSSES and term.pull != "none"]
    compared = any(term.sources and term.pull != "none" for term in response.terms)
    if target.loss_fn is None or compared or not classes:
        return note(f"{told}: it learns from the inputs alone")
    term = classes[0]
    make = warn if term.origin == "prediction" or "binary" in term.name else fail
    return make(
        f"{told}: the target of `{term.name}` is not computed from what `loss_fn` is given",
        location=term.location,
        hint="compare with the labels that `loss_fn` gets as its second argument",
    )


def _values() -> DataLoader[tuple[torch.Tensor, ...]]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x @ torch.linspace(-1, 1, 8)), batch_size=16, shuffle=True)


def _tokens() -> DataLoader[tuple[torch.Tensor, ...]]:
    ids = torch.randint(0, 20, (64, 7), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids, ids % 5), batch_size=16, shuffle=True)


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def good_regression() -> Target:
    model = torch.nn.Sequential(mlp(classes=1), torch.nn.Flatten(0))
    return Target(model, _values(), torch.nn.MSELoss())


def bad_column_against_row() -> Target:
    return Target(mlp(classes=1), _values(), torch.nn.MSELoss())


def bad_hand_written() -> Target:
    return Target(mlp(classes=1), _values(), lambda outputs, y: (outputs - y).abs().mean())


def bad_view_instead_of_transpose() -> Target:
    model = torch.nn.Sequential(torch.nn.Embedding(20, 16), torch.nn.Linear(16, 5))
    return Target(model, _tokens(), lambda logits, y: F.cross_entropy(logits.view(len(y), 5, -1), y))


def bad_labels_are_not_used() -> Target:
    return Target(mlp(), blobs(), lambda logits, y: F.cross_entropy(logits, torch.zeros_like(y)))
