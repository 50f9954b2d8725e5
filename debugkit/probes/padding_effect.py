"""What padding does to the outputs of a row: with it, without it, and with more of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.probes.sequence_row import SequenceRow
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.leak import Leak, find_leak
from debugkit.tokens.row_call import RowCall, Unchangeable, floats, largest_gap
from debugkit.tracing.program import Program
from debugkit.tracing.source import is_library_class

_MORE = 4


@dataclass(frozen=True, eq=False)
class PaddingEffect:
    """The outputs of a row's content with padding, against those without.

    Attributes:
        difference: the largest difference, relative to the spread of the outputs.
        tolerance: what rounding may explain of it.
        pads: how many positions of padding there were.
        left: whether they stand on the left.
        added: whether the padding was put in here, because no row has any.
        marked: the parameter that tells the model what is padding; ``None`` where nothing does.
        leak: where padding comes in, where there is a difference and it could be told.
    """

    cost: ClassVar[Cost] = "backward"
    difference: float
    tolerance: float
    pads: int
    left: bool
    added: bool
    marked: str | None
    leak: Leak | None

    @property
    def matters(self) -> bool:
        """Whether the padding shows in the outputs."""
        return self.difference > self.tolerance

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, row: SequenceRow) -> PaddingEffect:
        """Run the row without its padding; a model of the user's own that takes a mask gets some where there is none.

        Raises:
            Unavailable: there is no padding, or the model takes no other length.
        """
        call = row.call
        other = _other(target, row)
        if other is None:
            raise Unavailable("no row of the first batches has padding")
        padded, alone = (call, other) if call.padded else (other, call)
        with sandbox.probe():
            target.model.eval()
            try:
                with Program(target).precision():
                    outputs = other.on(target.model)
            except Exception as error:  # a model may refuse other lengths in any way
                raise Unavailable("the model takes rows of one length only") from error
            given = floats(outputs)
        pair = (row.outputs, given) if call.padded else (given, row.outputs)
        found = largest_gap(*pair, padded.length, padded.span)
        if found is None:
            raise Unavailable("the model's outputs do not keep the positions of the row")
        leak = None
        if found > row.tolerance:
            with sandbox.probe():
                target.model.eval()
                with Program(target).precision(), torch.no_grad():
                    leak = find_leak(target.model, padded, alone, row.tolerance / 10)
        return PaddingEffect(
            difference=found,
            tolerance=row.tolerance,
            pads=padded.length - alone.length,
            left=padded.span.start > 0,
            added=not call.padded,
            marked=call.marked,
            leak=leak,
        )


def _other(target: Target, row: SequenceRow) -> RowCall | None:
    """The row without padding, or with some."""
    if row.call.padded:
        try:
            return row.call.trimmed()
        except Unchangeable as error:
            raise Unavailable("it can't be told which dimension of the inputs is the sequence") from error
    if row.call.marked is None or row.call.ids is None or is_library_class(type(target.model)):
        return None
    try:
        return row.call.extended(_MORE, row.pad or 0)
    except Unchangeable:
        return None
