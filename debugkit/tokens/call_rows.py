"""The sequences in a model's call: token ids or features, what marks their padding, and one row of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from debugkit.data.batch import LABEL_KEYS, map_tensors, tensors
from debugkit.tokens.id_padding import padding_of
from debugkit.tokens.padding import OTHER_MASKS
from debugkit.tokens.row_call import RowCall, is_binary

_TELLING = 8
_IDS = (torch.int64, torch.int32, torch.int16)
_OTHER_IDS = ("decoder", "labels", "label", "target", "position", "token_type", "segment")
_OTHER_MASKS = (
    *OTHER_MASKS,
    "special",
    "loss",
    "assistant",
    "completion",
    "label",
    "global",
    "image",
    "pixel",
    "mlm",
)


@dataclass(frozen=True, eq=False)
class CallRows:
    """The rows of a call.

    Attributes:
        args: positional arguments.
        kwargs: named ones.
        path: where the sequences are.
        pad: the id of padding, given or told from the rows; ``None`` where there is none.
        sequences: ``[rows, length]`` ids or ``[rows, length, features]``.
        content: bool ``[rows, length]``: what is no padding.
        marked: see :class:`RowCall`.
        inverted: see :class:`RowCall`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str
    pad: int | None
    sequences: torch.Tensor
    content: torch.Tensor
    marked: str | None
    inverted: bool

    @staticmethod
    def of(
        model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], pad: int | None
    ) -> CallRows | None:
        """The rows of a call; ``None`` where it holds no sequences.

        Args:
            model: the model.
            args: positional arguments.
            kwargs: named ones.
            pad: the id of padding, where known; else it is told from the rows.
        """
        named = {path: t for path, t in _named(model, args, kwargs) if t.layout is torch.strided}
        ids = _ids(named)
        if ids is not None:
            path, values = ids
            if pad is None:
                pad, _ = padding_of([*values.detach().cpu().numpy()], [], None)
            content = _without(values, pad)
            mark = _mask(named, path, content) or _lengths(named, content)
        else:
            found = _features(named)
            if found is None:
                return None
            path, values, content = found
            mark = _mask(named, path, content, exact=True) or _lengths(named, content)
            if mark is None:
                return None
        marked, inverted = mark or (None, False)
        if marked is not None and named[marked].shape == content.shape:
            seen = named[marked].detach().cpu() != 0
            content = ~seen if inverted else seen
        rows, length = content.shape
        square = any(t.shape == content.shape and name not in (path, marked) for name, t in named.items())
        if length < 2 or (rows == length and square):
            return None
        return CallRows(args, kwargs, path, pad, values, content, marked, inverted)

    def most_padded(self) -> int | None:
        """The row with the most padding of those with eight positions of content, or with the most content.

        ``None`` where no row has padding around one stretch of at least two positions.
        """
        counts = self.content.sum(1)
        rows = [row for row in range(len(counts)) if 2 <= counts[row] < self.content.shape[1]]
        rows = [row for row in rows if _is_stretch(self.content[row])]
        long = [row for row in rows if counts[row] >= _TELLING]
        if long:
            return min(long, key=lambda row: int(counts[row]))
        return max(rows, key=lambda row: int(counts[row]), default=None)

    def fullest(self) -> int | None:
        """The row with the most content in one stretch."""
        counts = self.content.sum(1)
        rows = [row for row in range(len(counts)) if counts[row] >= 2 and _is_stretch(self.content[row])]
        return max(rows, key=lambda row: int(counts[row]), default=None)

    def row(self, number: int, labels: bool) -> RowCall:
        """One row as a call.

        Args:
            number: its number.
            labels: whether to pass labels on.
        """
        count = len(self.content)

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[number : number + 1] if tensor.ndim and tensor.shape[0] == count else tensor

        kwargs = {k: v for k, v in self.kwargs.items() if labels or k not in LABEL_KEYS}
        ids = self.sequences[number].detach().cpu() if self.sequences.ndim == 2 else None
        return RowCall(
            map_tensors(self.args, pick),
            map_tensors(kwargs, pick),
            self.content[number],
            ids,
            self.marked,
            self.inverted,
        )


def _named(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a call by the names of their parameters."""
    try:
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    for number, value in enumerate(args):
        yield from tensors(value, names[number] if number < len(names) else f"[{number}]")
    yield from tensors(kwargs)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _ids(named: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor] | None:
    found = {
        path: tensor
        for path, tensor in named.items()
        if tensor.dtype in _IDS
        and tensor.ndim == 2
        and tensor.shape[1] > 1
        and tensor.shape[0]
        and not _last(path).startswith(_OTHER_IDS)
        and "mask" not in path
        and not is_binary(tensor)
        and not bool((tensor.diff(dim=1) == 1).all())
    }
    for path, tensor in found.items():
        if _last(path) == "input_ids":
            return path, tensor
    return max(found.items(), key=lambda item: int(item[1].max()), default=None)


def _features(named: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor, torch.Tensor] | None:
    """Features of padded sequences: some rows end, or begin, with frames of zeros."""
    for path, tensor in named.items():
        if tensor.ndim == 3 and tensor.is_floating_point() and min(tensor.shape) > 1 and "mask" not in path:
            content = (tensor != 0).any(-1).detach().cpu()
            if not bool(content.all()) and all(_is_stretch(row) for row in content):
                return path, tensor, content
    return None


def _without(ids: torch.Tensor, pad: int | None) -> torch.Tensor:
    """What stands between the first and the last token that is no padding."""
    if pad is None:
        return torch.ones(ids.shape, dtype=torch.bool)
    real = (ids.detach().cpu() != pad).long()
    after, before = real.cumsum(1) > 0, real.flip(1).cumsum(1).flip(1) > 0
    return after & before


def _mask(
    named: dict[str, torch.Tensor], sequences: str, content: torch.Tensor, exact: bool = False
) -> tuple[str, bool] | None:
    """What marks the padding place by place, and whether it is 1 there."""
    found = {
        path: tensor.detach().cpu() != 0
        for path, tensor in named.items()
        if tensor.shape == content.shape and path != sequences and is_binary(tensor)
    }
    for path, mask in found.items():
        name = _last(path)
        if name == "attention_mask" and not exact:
            return path, False
        called = "mask" in name and not any(other in name for other in _OTHER_MASKS)
        whole = bool(content.all())
        if torch.equal(mask, content) and (called or not whole):
            return path, False
        if torch.equal(mask, ~content) and (called or not whole):
            return path, True
        if called and not exact and not whole:
            return path, int((mask == content).sum()) * 2 < content.numel()
    return None


def _lengths(named: dict[str, torch.Tensor], content: torch.Tensor) -> tuple[str, bool] | None:
    if bool(content.all()):
        return None
    counts = content.sum(1)
    for path, tensor in named.items():
        whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
        same = whole and tensor.ndim == 1 and tensor.shape == counts.shape
        if same and torch.equal(tensor.detach().cpu().long(), counts):
            return path, False
    return None


def _is_stretch(row: torch.Tensor) -> bool:
    places = row.nonzero().flatten()
    return len(places) > 0 and int(places[-1]) - int(places[0]) + 1 == len(places)
