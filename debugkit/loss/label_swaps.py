"""What a loss makes of labels: the same loss with labels in other places, and with other inputs behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from debugkit.data.batch import map_tensors, size
from debugkit.data.labels import tensors_by_path
from debugkit.errors import Broken
from debugkit.probes.training_step import run_step
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.dropout import NoDropout
from debugkit.tracing.flow import Flow
from debugkit.tracing.program import Program

Labels = Literal["paired", "unpaired", "unused", "unknown"]

_TRIALS = 4
_CLEAR = 3.0


@dataclass(frozen=True, eq=False)
class Answer:
    """The loss of a few samples, and what led to it.

    Attributes:
        target: whose step it is.
        batch: the samples.
        flow: what was recorded while the step ran on them.
        loss: what it returned.
    """

    target: Target
    batch: Any
    flow: Flow
    loss: torch.Tensor

    @property
    def rows(self) -> int:
        """How many samples."""
        return size(self.batch) or 1

    def replay(self, given: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The loss with other labels or predictions."""
        with Program(self.target).precision():
            return self.flow.tape.replay(given).of(self.loss)


def use_of_labels(answer: Answer, declared: Mapping[str, list[torch.Tensor]]) -> tuple[Labels, bool]:
    """What the loss makes of the labels, and whether these differ between the samples.

    ``paired``: it depends on which belongs to which prediction; ``unpaired``: only on what they are together;
    ``unused``: not on them.

    Args:
        answer: the loss of a few samples.
        declared: the labels by their place in the batch.
    """
    originals = _per_sample(answer, declared)
    same = {id(one): one.clone() for one in originals}
    rolled = {id(one): one.roll(_shift(one), 0) for one in originals}
    first, last = ({id(one): _all_like(one, row) for one in originals} for row in (0, -1))
    if all(torch.equal(one, first[id(one)]) for one in originals):
        return "unknown", False
    flow, names = answer.flow, set(declared)
    if not flow.sources(answer.loss) & names:
        if names & (flow.escaped | flow.lost):
            return "unknown", True
        return ("unused" if _same_without(answer, rolled, first) else "unknown"), True
    edges = _edges(flow, names)
    if names & flow.lost or not edges:
        return "unknown", True
    before = _gradients(answer, same, edges)
    if before is None or not _alike(before[0], answer.loss) or not any(bool(one.any()) for one in before[1]):
        return "unknown", True
    if _answers(before, _gradients(answer, rolled, edges)):
        return "paired", True
    by_value = _gradients(answer, first, edges)
    if by_value is None or not _answers(by_value, _gradients(answer, last, edges)) or names & flow.escaped:
        return "unknown", True  # only which labels are equal counts, as in metric learning
    for number in range(_TRIALS):  # a loss that is linear between its kinks can look the same by chance
        others = _elsewhere(edges, originals, number)
        shuffled = {id(one): one[_order(len(one), number)] for one in originals}
        given = _gradients(answer, {**same, **others}, edges)
        if given is None or _answers(given, _gradients(answer, {**shuffled, **others}, edges)):
            return "paired", True
    return "unpaired", True


def _with(batch: Any, given: Mapping[int, torch.Tensor]) -> Any:
    return map_tensors(batch, lambda one: given.get(id(one), one))


def _edges(flow: Flow, names: set[str]) -> list[torch.Tensor]:
    """The predictions that labels meet."""
    met = [one.predicted for one in flow.meetings if flow.sources(one.batch) & names]
    met += [call.given["input"] for call in flow.calls if call.sources & names]
    edges = {id(one): one for one in met if one.requires_grad and not flow.sources(one) & names}
    return [*edges.values()]


def _elsewhere(edges: list[torch.Tensor], labels: list[torch.Tensor], number: int) -> dict[int, torch.Tensor]:
    """Predictions spread out around the labels, or around themselves."""
    generator = torch.Generator().manual_seed(number)
    given = torch.cat(
        [
            one.detach().double().flatten().cpu()
            for one in labels
            if one.dtype != torch.bool and not one.is_complex()
        ]
        or [torch.zeros(0, dtype=torch.float64)]
    )
    found = {}
    for edge in edges:
        values = given if len(given) > 1 and number % 2 == 0 else edge.detach().double().flatten().cpu()
        noise = torch.randn(edge.shape, generator=generator, dtype=torch.float64)
        spread = float(values.std()) if len(values) > 1 else 1.0
        other = (float(values.mean()) + 2 * (spread or 1.0) * noise).to(edge)
        found[id(edge)] = other.requires_grad_()
    return found


def _gradients(
    answer: Answer, given: Mapping[int, torch.Tensor], edges: list[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
    """The loss with other labels or predictions, and its gradients with respect to the predictions."""
    leaves = {id(edge): edge.detach().requires_grad_() for edge in edges}
    given = {**leaves, **given}
    try:
        loss = answer.replay(given)
        inputs = [given[id(edge)] for edge in edges]
        if not loss.requires_grad:
            return loss, []
        found = torch.autograd.grad(loss.sum(), inputs, retain_graph=True, allow_unused=True)
    except Exception:  # the loss does not take such values, or its graph is used up
        return None
    return loss, [torch.zeros(()) if one is None else one for one in found]


def _same_without(answer: Answer, *others: Mapping[int, torch.Tensor]) -> bool:
    """Whether the step gives the same loss with other labels in the batch."""
    for labels in others:
        batch = _with(answer.batch, labels)
        try:
            seed_everything(0)
            with NoDropout():
                loss = run_step(answer.target, batch).loss
        except Broken:
            return False
        if not _alike(loss, answer.loss):
            return False
    return True


def _all_like(labels: torch.Tensor, row: int) -> torch.Tensor:
    """The label of one sample for all; the last one that differs from the first where the row is -1."""
    if row < 0:
        row = int(_rows_differ(labels, labels[:1].expand_as(labels)).nonzero().flatten()[-1:].sum())
    return labels[row].expand_as(labels).clone()


def _order(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _shift(labels: torch.Tensor) -> int:
    """By how many rows to roll labels so that most get another one."""
    return max(
        range(1, max(len(labels), 2)),
        key=lambda shift: int(_rows_differ(labels, labels.roll(shift, 0)).sum()),
    )


def _rows_differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one != other).reshape(len(one), -1).any(1)


def _answers(
    before: tuple[torch.Tensor, list[torch.Tensor]], after: tuple[torch.Tensor, list[torch.Tensor]] | None
) -> bool:
    """Whether the loss or a gradient changed by more than rounding."""
    if after is None:
        return True
    return any(
        not _alike(one, other)
        for one, other in [(before[0], after[0]), *zip(before[1], after[1], strict=True)]
    )


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same up to rounding, as far as their precision goes."""
    if one.shape != other.shape:
        return False
    tolerance = 2e-2 if one.dtype in (torch.float16, torch.bfloat16) else 1e-4
    first, second = one.detach().double(), other.detach().double()
    scale = float(first.abs().max()) if first.numel() else 0.0
    return not first.numel() or float((first - second).abs().max()) <= tolerance * max(scale, 1e-30)


def misplaced(
    answer: Answer, labels: Mapping[str, list[torch.Tensor]]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Predictions that the first half of the samples lead to, and those that their labels stand against.

    The labels of these samples are replaced, which shows the rows of predictions that they meet; then their inputs
    are, in a second run of the step, which shows the rows that they lead to.

    Args:
        answer: the loss of a few samples.
        labels: by place in the batch; only labels with one value per sample are judged.

    Returns:
        The rows of the inputs and the rows of the labels, where both are clear and they differ.
    """
    originals = [one for one in _per_sample(answer, labels) if one.numel() == len(one)]
    edges = [edge for edge in _edges(answer.flow, set(labels)) if edge.ndim and len(edge) == answer.rows]
    half = answer.rows // 2
    if len(originals) != 1 or not edges or half < 1 or answer.rows < 3:
        return None
    (label,) = originals
    swapped = label.clone()
    for row in range(half):
        others = (label != label[row]).reshape(-1).nonzero().flatten()
        if not len(others):
            return None
        swapped[row] = label[int(others[row % len(others)])]
    before, after = (_gradients(answer, {id(label): one}, edges) for one in (label.clone(), swapped))
    if before is None or after is None or not before[1]:
        return None
    met = _moved(before[1], after[1], half)
    led = _moved(edges, _edges_with_other_inputs(answer, labels, half, edges), half) if met else None
    return (led, met) if led and met and led != met else None


def _edges_with_other_inputs(
    answer: Answer, labels: Mapping[str, list[torch.Tensor]], half: int, edges: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The predictions when the first samples have inputs of the last ones; none where they can't be told.

    Only the largest input is changed: lengths and masks stay as they are.
    """
    inputs = [
        one
        for path, found in tensors_by_path(answer.batch).items()
        for one in found
        if path not in labels and one.layout is torch.strided and one.ndim and len(one) == answer.rows
    ]
    if not inputs:
        return []
    largest = max(inputs, key=torch.Tensor.numel)
    changed = largest.clone()
    changed[:half] = largest[-half:]
    batch = _with(answer.batch, {id(largest): changed})
    flow = Flow(tensors_by_path(batch))
    seed_everything(0)
    try:
        with flow:
            run_step(answer.target, batch)
    except Broken:
        return []
    before, again = _edges(answer.flow, set(labels)), _edges(flow, set(labels))
    if [one.shape for one in again] != [one.shape for one in before]:
        return []
    wanted = {id(edge) for edge in edges}
    return [one for one, old in zip(again, before, strict=True) if id(old) in wanted]


def _moved(before: list[torch.Tensor], after: list[torch.Tensor], count: int) -> tuple[int, ...] | None:
    """The rows that changed, where there are ``count`` of them and all others changed far less."""
    if [one.shape for one in before] != [one.shape for one in after]:
        return None
    changes = [
        (one.detach() - other.detach()).double().abs().reshape(len(one), -1).amax(1).cpu()
        for one, other in zip(before, after, strict=True)
        if one.ndim and one.numel()
    ]
    if not changes:
        return None
    largest = torch.stack([one / one.max().clamp_min(1e-30) for one in changes]).amax(0)
    order = largest.argsort(descending=True)
    inside, outside = largest[order[:count]], largest[order[count:]]
    if not bool(largest.isfinite().all()) or float(inside.min()) <= _CLEAR * float(outside.max()):
        return None
    return tuple(sorted(order[:count].tolist()))


def _per_sample(answer: Answer, labels: Mapping[str, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [one for found in labels.values() for one in found if one.ndim and len(one) == answer.rows]
