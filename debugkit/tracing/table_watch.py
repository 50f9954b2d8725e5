"""The tables that a program reads by whole numbers: embeddings, parameters and buffers, one-hot vectors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.tracing.source import user_location

Kind = Literal["rows", "first", "classes"]

_MOST_READS = 256
_MOST_VALUES = 2**22
_EMBEDDINGS = (F.embedding, F.embedding_bag)
_CLASSES = (F.cross_entropy, F.nll_loss)


@dataclass(frozen=True, eq=False)
class Read:
    """One reading of a table.

    Attributes:
        table: its dotted name; what it is where it has none.
        rows: how many rows it has.
        kind: ``rows`` at given numbers, the ``first`` so many rows (a slice), or ``classes`` of a loss.
        index: the numbers on the CPU, int64; for a slice how many rows it asks for.
        location: the source line.
    """

    table: str
    rows: int
    kind: Kind
    index: torch.Tensor = field(repr=False)
    location: str | None = None

    @property
    def lowest(self) -> int:
        """The smallest number."""
        return int(self.index.min())

    @property
    def highest(self) -> int:
        """The largest number."""
        return int(self.index.max())

    @property
    def fits(self) -> bool:
        """Whether there is a row for every number; what is negative does not count as a class."""
        if self.kind == "first":
            return self.highest <= self.rows
        return self.highest < self.rows and (self.lowest >= 0 or self.kind == "classes")


class TableWatch(TorchFunctionMode):
    """Records the readings while active. An embedding that has no row for a number gives its nearest one.

    So the rest of the program is seen too, and no GPU is stopped by an assertion.

    Args:
        model: whose parameters and buffers are tables.

    Attributes:
        reads: the readings, in order.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.reads: list[Read] = []
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        self._names = {id(tensor): name.removesuffix(".weight") for name, tensor in reversed(tensors)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if len(self.reads) >= _MOST_READS:
            return func(*args, **kwargs)
        if func in _EMBEDDINGS:
            given = _bound(func, args, kwargs)
            read = self._rows(given.get("weight"), given.get("input"))
            if read is not None and not read.fits:
                return func(**{**given, "input": given["input"].clamp(0, read.rows - 1)})
        elif func is F.one_hot:
            given = {**dict(zip(("tensor", "num_classes"), args, strict=False)), **kwargs}
            self._one_hot(given.get("tensor"), given.get("num_classes"))
        elif func in _CLASSES:
            given = _bound(func, args, kwargs)
            self._classes(given.get("input"), given.get("target"))
        elif func is torch.Tensor.__getitem__ and self._is_table(args[0]):
            self._getitem(args[0], args[1])
        elif func in (torch.index_select, torch.Tensor.index_select):
            given = {**dict(zip(("input", "dim", "index"), args, strict=False)), **kwargs}
            if given.get("dim") == 0 and self._is_table(given.get("input")):
                self._rows(given["input"], given.get("index"))
        return func(*args, **kwargs)

    def _is_table(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.ndim >= 1 and id(value) in self._names

    def _rows(self, table: Any, index: Any) -> Read | None:
        if not isinstance(table, torch.Tensor) or not table.ndim or not _is_whole(index):
            return None
        return self._keep(self._name(table), len(table), "rows", index)

    def _getitem(self, table: torch.Tensor, index: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        if parts and _is_whole(parts[0]) and parts[0].dtype != torch.uint8:
            self._rows(table, parts[0])
            return
        for dim, part in zip(range(table.ndim), parts, strict=False):
            if not isinstance(part, (slice, int)):
                return
            if isinstance(part, int) or part.start or part.step not in (None, 1):
                continue
            if isinstance(part.stop, int) and part.stop > 1:
                self._keep(self._name(table), table.shape[dim], "first", torch.tensor(part.stop))

    def _one_hot(self, index: Any, classes: Any) -> None:
        if _is_whole(index) and isinstance(classes, int) and classes > 0:
            self._keep("one_hot", classes, "rows", index)

    def _classes(self, scores: Any, target: Any) -> None:
        if isinstance(scores, torch.Tensor) and scores.ndim and _is_whole(target):
            self._keep("the scores of the loss", scores.shape[1 if scores.ndim > 1 else 0], "classes", target)

    def _keep(self, table: str, rows: int, kind: Kind, index: torch.Tensor) -> Read:
        read = Read(table, rows, kind, index.detach().cpu().long(), user_location(outer=True))
        self.reads.append(read)
        return read

    def _name(self, table: torch.Tensor) -> str:
        return self._names.get(id(table), "a computed table")


def _is_whole(value: Any) -> bool:
    whole = (torch.int64, torch.int32, torch.int16, torch.uint8)
    return isinstance(value, torch.Tensor) and value.dtype in whole and 0 < value.numel() <= _MOST_VALUES


def _bound(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(func).bind(*args, **kwargs).arguments)
