"""What a change of some rows, tokens or inputs did to a model's outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from debugkit.tracing.mixing import Touch

Way = Literal["values", "choices", "unknown"]


@dataclass(frozen=True)
class Mixing:
    """What a change of the other rows of a batch did to a row that stayed as it was.

    Attributes:
        change: how far its outputs moved, in widths of the middle half of all outputs.
        way: whether ``values`` flow from row to row, only ``choices`` (routing, sorting) depend on other rows, or it
            could not be told.
        follows: whether another dimension of the output is as long as the batch, as in a table of similarities.
        fixed: whether the model takes no other number of rows.
        along_second: whether rows are independent along the second dimension, which may be the batch then.
        touch: the first operation in whose result the row moved.
    """

    change: float
    way: Way = "unknown"
    follows: bool = False
    fixed: bool = False
    along_second: bool = False
    touch: Touch | None = None


@dataclass(frozen=True, eq=False)
class Span:
    """What a change of some tokens of a row did to its outputs, position by position.

    Attributes:
        path: the input.
        start: the first changed place.
        stop: the place after the last one.
        change: ``[length]``, how far the outputs of each position moved, in widths as above.
        asked: bool ``[length]``, the positions that have a target; ``None`` where that is unknown.
        documents: ``[length]``, the document of each position, where the row is packed.
        declared: what says so.
        repeated: whether what moved before ``start``, or in later documents, moved again with other tokens.
        ahead: how many positions from ``start`` on must not move either: 1 where the input are the targets.
        touch: the first module whose outputs moved at the positions before ``start``, where some did.
    """

    path: str
    start: int
    stop: int
    change: torch.Tensor = field(repr=False)
    asked: torch.Tensor | None = field(repr=False, default=None)
    documents: torch.Tensor | None = field(repr=False, default=None)
    declared: str | None = None
    repeated: bool = False
    ahead: int = 0
    touch: str | None = None

    @property
    def before(self) -> torch.Tensor:
        """The changes of the outputs that come before the change, of those with a target where known."""
        found = self.change[: self.start + self.ahead]
        return found if self.asked is None else found[self.asked[: len(found)]]

    @property
    def other_documents(self) -> torch.Tensor:
        """The changes of the outputs in the documents after the changed one."""
        if self.documents is None:
            return self.change[:0]
        own = int(self.documents[self.start])
        return self.change[(self.documents > own)[: len(self.change)]]


@dataclass(frozen=True)
class Order:
    """What another order of the tokens of a row did to its outputs, once these are put in the same order.

    Attributes:
        change: how far they moved, in widths as above.
        exact: whether they stay the same in double precision too, to its rounding.
        pairs: whether some operation compares the positions of a row with each other.
    """

    change: float
    exact: bool
    pairs: bool


@dataclass(frozen=True)
class Effect:
    """What a change of one input did to the outputs.

    Attributes:
        change: how far they moved, in widths as above.
        constant: whether nothing moved, not even in a second try with other values in all rows.
        mask: whether the input is a mask.
        padded: whether it is a mask that hides something in the rows looked at.
    """

    change: float
    constant: bool = False
    mask: bool = False
    padded: bool = False


@dataclass(frozen=True)
class Features:
    """Which features of the main input change nothing.

    Attributes:
        count: how many there are.
        ignored: the numbers of those that move no output, although their values differ from row to row.
    """

    count: int
    ignored: tuple[int, ...]
