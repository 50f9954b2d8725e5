"""How the loss answers: to labels that change places, to its own terms, to what stands in its rows of logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import size, split
from debugkit.data.labels import tensors_by_path
from debugkit.data.subset import few_samples
from debugkit.errors import Broken
from debugkit.evidence import Cost
from debugkit.loss.label_swaps import Answer, Labels, misplaced, use_of_labels
from debugkit.loss.loss_terms import Term, terms
from debugkit.loss.mixups import Crossing, Misread, crossings, misread
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.flow import Flow, RefusedLoss
from debugkit.tracing.program import DetachedLossError
from debugkit.tracing.tape import flat

MOST_ROWS = 6


@dataclass(frozen=True, eq=False)
class LossResponse:
    """What the loss makes of predictions and labels, seen on a few samples without dropout.

    The loss is computed once. What the labels do in it is then played again with other labels, which costs no
    further pass of the model.

    Attributes:
        rows: how many samples were used.
        loss: the loss on them; ``nan`` where it could not be computed.
        declared: the parts of the batch that are its labels because the loss function or the model is given them.
        labels: what the loss makes of these: it depends on which belongs to which prediction (``paired``), only on
            what they are together (``unpaired``), or not on them (``unused``).
        labels_vary: whether the samples have different labels.
        crossings: operations that held each sample against each other one by broadcasting.
        misread: rows of logits that were put together from several positions.
        terms: the parts of the loss that hold predictions against the batch.
        misplaced: the predictions that some samples lead to and those that their labels stand against, where these
            differ.
        sampled: whether the step drew normal noise.
        refused: the loss function that raised, where one did.
        returned: what the step returned, in words, where that is a plain number and no tensor.
    """

    cost: ClassVar[Cost] = "forward"
    rows: int
    loss: float
    declared: tuple[str, ...] = ()
    labels: Labels = "unknown"
    labels_vary: bool = False
    crossings: tuple[Crossing, ...] = ()
    misread: tuple[Misread, ...] = ()
    terms: tuple[Term, ...] = ()
    misplaced: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    sampled: bool = False
    refused: RefusedLoss | None = field(default=None, repr=False)
    returned: str | None = None

    @property
    def cancelled(self) -> Term | None:
        """A loss function whose value is multiplied by 0 on the way to the loss, where no other one counts."""
        calls = [term for term in self.terms if term.is_loss]
        return calls[0] if calls and all(term.weight == 0 for term in calls) else None

    @staticmethod
    def collect(
        target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep | None
    ) -> LossResponse:
        """Run the step once on a few samples of the first batch, or on all of it where it can't be cut.

        Raises:
            Broken: the step raised, but not in one of torch's loss functions.
        """
        few = few_rows(batches.first, step)
        for batch in (few, batches.first):
            flow = Flow(tensors_by_path(batch))
            with sandbox.probe():
                begin(target, sandbox)
                try:
                    seed_everything(0)
                    with flow:
                        loss = run_step(target, batch).loss
                except DetachedLossError as error:
                    if any(parameter.grad is not None for parameter in target.model.parameters()):
                        raise
                    return LossResponse(size(batch) or 1, float("nan"), returned=str(error))
                except Broken:
                    if flow.refused is not None:
                        return LossResponse(size(batch) or 1, float("nan"), refused=flow.refused)
                    if batch is batches.first:
                        raise
                    continue
                return _measure(Answer(target, batch, flow, loss))
        raise AssertionError("unreachable")


def few_rows(batch: Any, step: TrainingStep | None = None) -> Any:
    """At most six samples that cover the labels, as many as no other dimension around the loss counts."""
    count = size(batch) or 1
    taken = {side for _, each in tensors_by_path(batch).items() for one in each for side in one.shape[1:]}
    for call in step.loss_calls if step is not None else ():
        taken |= {*call.input.shape[1:], *(call.target.shape[1:] if call.target else ())}
    most = min(count, MOST_ROWS)
    rows = next((rows for rows in range(most, max(most // 2, 1), -1) if rows not in taken), most)
    return few_samples([batch], rows)[0]


def begin(target: Target, sandbox: Sandbox) -> None:
    """Train mode, as training has it, with the dropout of recurrent layers off."""
    if not sandbox.training[""]:
        target.model.train()
    for module in target.model.modules():
        if isinstance(module, torch.nn.RNNBase):
            module.dropout = 0.0


def _measure(answer: Answer) -> LossResponse:
    flow, loss, rows = answer.flow, answer.loss, answer.rows
    declared = _declared(answer.target, answer.batch)
    labels, vary = use_of_labels(answer, declared)
    return LossResponse(
        rows=rows,
        loss=float(loss.detach().float().mean()) if loss.numel() else float("nan"),
        declared=tuple(declared),
        labels=labels,
        labels_vary=vary,
        crossings=tuple(crossings(flow, loss)),
        misread=tuple(misread(flow, rows)),
        terms=tuple(terms(flow, loss)),
        misplaced=misplaced(answer, _targets(answer, declared)),
        sampled=flow.sampled,
    )


def _declared(target: Target, batch: Any) -> dict[str, list[torch.Tensor]]:
    """The labels that ``loss_fn`` is given, or the model under their name."""
    if target.training_step is not None or (target.loss_fn is None and not isinstance(batch, Mapping)):
        return {}
    known = {id(tensor) for tensor in flat(split(batch)[1])}
    return {
        path: found
        for path, found in tensors_by_path(batch).items()
        if any(id(one) in known for one in found)
    }


def _targets(answer: Answer, declared: Mapping[str, list[torch.Tensor]]) -> Mapping[str, list[torch.Tensor]]:
    """The labels: declared ones, or the one part of the batch that a loss takes and no layer does."""
    if declared:
        return declared
    flow = answer.flow
    taken = {source for call in flow.calls for source in call.sources} - flow.fed
    taken |= {source for met in flow.meetings for source in flow.sources(met.batch)} - flow.fed
    parts = tensors_by_path(answer.batch)
    return {source: parts[source] for source in taken} if len(taken) == 1 else {}
