"""What each position of a sequence model is trained to predict, read from the gradient of the user's own loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import input_ids, size, sliceable, split, take, tensors
from debugkit.data.labels import IGNORED, are_named, as_tensor
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.alignment import Aligned, Match, align, class_targets
from debugkit.tokens.lookups import Looked, Lookups, disturbing
from debugkit.tokens.sight import BLIND, Plan
from debugkit.tracing.program import primary_output
from debugkit.weights.input_embedding import input_embedding

_MOST_ROWS = 4
_PART = 4
_FEW_POSITIONS = 24
_MOST_SCORES = 2**27


@dataclass(frozen=True, eq=False)
class TokenTargets:
    """The tokens that some rows of a batch give to a model, beside what each position has to predict.

    The gradient of cross-entropy with respect to the scores of a position is negative for one class: its target.
    Where the loss leaves a position out there is no gradient. So this holds whatever a model, a collator or a
    loss does with the labels on the way.

    Attributes:
        samples: the numbers of the rows in loader order.
        batch: the number of the batch that they are from.
        rows: their numbers in that batch.
        ids: ``[rows, length]``, the ids that the model looked up for the positions of its scores.
        targets: ``[rows, length]``, the class that each position has to predict; -1 where the loss asks for none.
        matches: by distance: how often the target of position t is the token at t + distance.
        shift: the distance at which targets are tokens; ``None`` where they are something else, such as tags or
            masked words, or where the rows repeat themselves too much to tell.
        decoder: whether the model looks up the batch's input ids too, and these are others, which a decoder gets.
        causal: whether scores stay as they are when later tokens change; ``None`` where that could not be seen.
        reach: the farthest token that the scores of position t change with, counted from t: 0 for a causal
            model, -1 for one that shifts its inputs itself.
        sees_answer: whether the scores of a position change with the token that it has to predict (with its own
            token, where ``shift`` is ``None``).
        local: whether a token changes the scores at its own position far more than at others.
        alone: whether it changes the scores at its own position only.
        loss: the loss on these rows.
        location: the source line of the loss, where torch's own was called.
    """

    cost: ClassVar[Cost] = "forward"
    samples: tuple[int, ...]
    batch: int
    rows: tuple[int, ...]
    ids: torch.Tensor = field(repr=False)
    targets: torch.Tensor = field(repr=False)
    matches: Mapping[int, Match]
    shift: int | None
    decoder: bool
    causal: bool | None
    reach: int | None
    sees_answer: bool | None
    local: bool | None
    alone: bool | None
    loss: float
    location: str | None

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches) -> TokenTargets:
        """Run the step on a quarter of a batch (at most four rows), and again with tokens disturbed.

        Raises:
            Unavailable: the step has no cross-entropy for each token, or does not run.
        """
        if not any(_is_matrix(tensor) for _, tensor in tensors(batches.first)):
            raise Unavailable("the batch holds no token ids and no labels for each token")
        if _has_row_labels(batches.first):
            raise Unavailable("there is one label for a row, not one for each token")
        number = _most_telling(batches.items)
        rows, part = _part(batches.items[number], target)
        offset = sum(size(batch) or 1 for batch in batches.items[:number])
        first = _first_pass(target, sandbox, part)
        plan = Plan.of(first.aligned)
        change = None if plan is None else _second_pass(target, sandbox, part, first, plan)
        sight = BLIND if plan is None or change is None else plan.read(change)
        given = input_ids(part)
        aligned = first.aligned
        return TokenTargets(
            samples=tuple(offset + row for row in rows),
            batch=number,
            rows=rows,
            ids=aligned.ids,
            targets=aligned.targets,
            matches=aligned.matches,
            shift=aligned.shift,
            decoder=given is not None and first.beside(given.detach().cpu()),
            causal=sight.causal,
            reach=sight.reach,
            sees_answer=sight.answer,
            local=sight.local,
            alone=sight.alone,
            loss=first.loss,
            location=first.location,
        )


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one run of the step showed: the scores, which of the step's outputs they are, and the ids beside them."""

    scores: torch.Tensor
    number: int
    class_dim: int
    looked: Looked
    others: tuple[Looked, ...]
    aligned: Aligned
    loss: float
    location: str | None

    def beside(self, given: torch.Tensor) -> bool:
        """Whether the given ids were looked up, and the aligned ones are not they."""
        if _is_part_of(self.looked.ids, given):
            return False
        return any(_is_part_of(one.ids, given) for one in self.others)


def _first_pass(target: Target, sandbox: Sandbox, part: Any) -> _Pass:
    given = input_ids(part)
    preferred = None if given is None else given.detach().cpu()
    with sandbox.probe():
        loss, outputs, seen = _run(target, sandbox, part, Lookups())
        if not loss.requires_grad:
            raise Unavailable("the loss has no gradient to read targets from")
        looked = seen.looked()
        why = "the loss is no cross-entropy over classes for each token"
        try:
            gradients = torch.autograd.grad(loss, outputs, allow_unused=True) if outputs else ()
        except RuntimeError as error:
            raise Unavailable(f"the gradient of the loss could not be read: {one_line(error)}") from error
        for number, (scores, gradient) in enumerate(zip(outputs, gradients, strict=True)):
            found = None if gradient is None else class_targets(gradient)
            if found is None:
                continue
            aligned = align(found[0], [one.ids for one in looked], preferred)
            if aligned is not None:
                one = looked[aligned.number]
                return _Pass(
                    scores=scores.detach(),
                    number=number,
                    class_dim=found[1],
                    looked=one,
                    others=tuple(other for other in looked if other is not one),
                    aligned=aligned,
                    loss=float(loss.detach()),
                    location=seen.location,
                )
            why = f"the scores {list(scores.shape)} belong to no token ids that the model looks up"
    raise Unavailable(why)


def _second_pass(
    target: Target, sandbox: Sandbox, part: Any, first: _Pass, plan: Plan
) -> torch.Tensor | None:
    """How far the scores of each position move when tokens are disturbed; ``None`` where that can't be told."""
    places = plan.places.T if first.aligned.turned else plan.places
    with sandbox.probe():
        try:
            _, outputs, _ = _run(target, sandbox, part, Lookups(disturbing(first.looked, places)))
        except Unavailable:
            return None
        if len(outputs) <= first.number or outputs[first.number].shape != first.scores.shape:
            return None
        before, after = first.scores.float(), outputs[first.number].detach().float()
    spread = float(before.std(correction=0)) or 1.0
    change = (after - before).abs().nan_to_num(0.0).amax(first.class_dim).cpu() / spread
    return first.aligned.rows_first(change)


def _run(
    target: Target, sandbox: Sandbox, part: Any, seen: Lookups
) -> tuple[torch.Tensor, list[torch.Tensor], Lookups]:
    """The loss, and the tensors that may hold the scores behind it, the likely ones first."""
    if not sandbox.training[""]:
        target.model.train()
    try:
        with seen:
            outcome = run_step(target, part)
    except Broken as error:
        raise Unavailable(f"the step does not run on a part of the batch: {error}") from error
    given = outcome.outputs
    others = list(given.values()) if isinstance(given, Mapping) else given
    outputs = [
        primary_output(given),
        *seen.loss_inputs,
        *(others if isinstance(others, (list, tuple)) else ()),
    ]
    found = {id(output): output for output in outputs if _may_be_scores(output)}
    return outcome.loss.mean(), [*found.values()], seen


def _may_be_scores(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad and 2 <= value.ndim <= 3


def _part(batch: Any, target: Target) -> tuple[tuple[int, ...], Any]:
    """Neighbouring rows of a batch; all of it where it can't be cut.

    They are those with the most labels, and if that leaves a choice, long ones with some padding among them.
    """
    count = size(batch) or 1
    if not sliceable(batch):
        return tuple(range(count)), batch
    table = input_embedding(target.model)
    widths = [tensor.shape[1] for _, tensor in tensors(batch) if _is_matrix(tensor)]
    scores = max(widths, default=1) * (1 if table is None else len(table))
    length = max(widths, default=1)
    rows = max(min(_MOST_ROWS, count // _PART), min(count, 2 * _MOST_ROWS, -(-_FEW_POSITIONS // length)))
    rows = max(1, min(rows, _MOST_SCORES // max(scores, 1)))
    counted, tails = _counts(batch, count)

    def worth(start: int) -> tuple[int, bool, int]:
        tail = tails[start : start + rows]
        return sum(counted[start : start + rows]), max(tail) > 1, -sum(tail)

    first = max(range(count - rows + 1), key=worth)
    picked = tuple(range(first, first + rows))
    return picked, take(batch, picked)


def _counts(batch: Any, rows: int) -> tuple[list[int], list[int]]:
    """Per row: how many labels are not -100, and how often the last one stands at its end."""
    labels = as_tensor(split(batch)[1])
    if labels is None or labels.ndim < 2 or len(labels) != rows or not labels[0].numel():
        return [0] * rows, [0] * rows
    flat = labels.flatten(1)
    tails = (flat == flat[:, -1:]).flip(1).long().cumprod(1).sum(1)
    return (flat != IGNORED).sum(1).tolist(), tails.tolist()


def _most_telling(items: Sequence[Any]) -> int:
    """The number of the first batch that has labels, and some rows that end in the same label several times."""

    def worth(batch: Any) -> tuple[bool, bool]:
        counted, tails = _counts(batch, size(batch) or 1)
        return any(counted), any(c and tail > 1 for c, tail in zip(counted, tails, strict=True))

    found = [worth(batch) for batch in items]
    return found.index(max(found))


def _has_row_labels(batch: Any) -> bool:
    """Whether labels, where it is certain what they are, are one number for each row."""
    labels = as_tensor(split(batch)[1])
    known = are_named(batch) or (isinstance(batch, (tuple, list)) and len(batch) == 2)
    return known and labels is not None and labels.numel() == len(labels) == (size(batch) or 0)


def _is_matrix(tensor: torch.Tensor) -> bool:
    """Whether a tensor may hold token ids or labels for each token."""
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return whole and tensor.ndim in (2, 3) and tensor.shape[-1] > 1


def _is_part_of(ids: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether ids are the given ones, or all of them but the first or the last of each row."""
    ways = (given, given.T, given[:, :-1], given[:, 1:], given[:-1], given[1:])
    return any(way.shape == ids.shape and torch.equal(way, ids) for way in ways)
