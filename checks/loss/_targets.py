"""What a loss function was given as its target, and what the scanned data says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from debugkit.data.labels import Labels
from debugkit.data.rows import Column
from debugkit.loss.loss_terms import Term
from debugkit.loss.losses import Facts, LossCall
from debugkit.probes.loss_response import LossResponse
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep


@dataclass(frozen=True, eq=False)
class Supervised:
    """A loss call whose target comes from the batch, and from nothing that the model is given as well.

    Attributes:
        call: the call.
        target: what its target looks like.
        labels: the labels behind the target over the scanned samples, where they are one part of the batch.
        column: that part of the batch.
    """

    call: LossCall
    target: Facts
    labels: Labels | None
    column: Column | None

    @property
    def kind(self) -> str:
        """The kind of the labels; ``unknown`` where they were not found."""
        return self.labels.kind if self.labels is not None else "unknown"

    def one_hot_over(self) -> int | None:
        """The dimension of the target along which exactly one value is 1 and all others are 0."""
        facts = self.target
        if not facts.integral or facts.minimum != 0 or facts.maximum != 1:
            return None
        return next((dim for dim in facts.normalised_dims if dim), None)

    @property
    def made_from_classes(self) -> bool:
        """Whether the data holds one class per sample, token or pixel, and no rows of zeros and ones."""
        return (
            self.labels is not None
            and self.kind in ("classes", "tags", "pixels")
            and self.column is not None
            and len(next(iter(self.column.shapes), ())) < len(self.target.shape) - 1
        )


def supervised(step: TrainingStep, response: LossResponse, samples: Samples | None) -> Iterator[Supervised]:
    """The loss calls to judge, one per place in the source."""
    seen = set()
    for call in step.loss_calls:
        key = (call.name, call.location, call.input.shape[1:])
        term = next(
            (t for t in response.terms if t.is_loss and (t.name, t.location) == (call.name, call.location)),
            None,
        )
        if key in seen or not call.connected or call.target is None or term is None:
            continue
        if not term.sources or term.fed:
            continue
        seen.add(key)
        labels, column = _behind(term, response, samples)
        yield Supervised(call, call.target, labels, column)


def _behind(
    term: Term, response: LossResponse, samples: Samples | None
) -> tuple[Labels | None, Column | None]:
    if samples is None:
        return None, None
    found = {}
    for source in term.sources:
        if source in samples.candidates:
            found[source] = samples.candidates[source]
        elif source in response.declared and len(response.declared) == 1:
            found[source] = samples.representative
    if len(found) != 1:
        return None, None
    ((source, labels),) = found.items()
    return labels, samples.rows.columns.get(source.removeprefix("batch").lstrip("."))
