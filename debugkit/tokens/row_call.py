"""One row of a model's call: its sequence, what of it is content, and the same row with less or more padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from debugkit.data.batch import map_tensors, tensors

Index = slice | torch.Tensor


class Unchangeable(Exception):  # noqa: N818 - a refusal, not an error
    """The call holds something that does not go with the change."""


@dataclass(frozen=True, eq=False)
class RowCall:
    """A call of a model on one row.

    Attributes:
        args: positional arguments.
        kwargs: named ones.
        content: bool ``[length]``: what is no padding, in one stretch.
        ids: ``[length]`` the token ids; ``None`` for features.
        marked: the parameter that tells the model what is padding; ``None`` where nothing does.
        inverted: whether that is 1 at padding.
    """

    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    content: torch.Tensor
    ids: torch.Tensor | None
    marked: str | None = None
    inverted: bool = False

    @property
    def length(self) -> int:
        """The number of positions, padding included."""
        return len(self.content)

    @property
    def span(self) -> slice:
        """Where the content is."""
        places = self.content.nonzero().flatten()
        return slice(int(places[0]), int(places[-1]) + 1)

    @property
    def padded(self) -> bool:
        """Whether there is padding."""
        return not bool(self.content.all())

    def on(self, model: torch.nn.Module, **more: Any) -> Any:
        """What the model gives for fresh copies of the tensors, and for more keywords."""
        args, kwargs = (map_tensors(value, _copy) for value in (self.args, self.kwargs))
        return model(*args, **{**kwargs, **more})

    def trimmed(self) -> RowCall:
        """The row without padding.

        Raises:
            Unchangeable: nothing in the call has the length, or it can't be told which dimension is the sequence.
        """
        span = self.span
        changed = self._changed(lambda tensor, path: cut(tensor, self.length, span))
        ids = None if self.ids is None else self.ids[span]
        return replace(changed, content=self.content[span], ids=ids)

    def extended(self, count: int, pad: int, left: bool = False) -> RowCall:
        """The row with more padding, 0 in what marks it.

        Raises:
            Unchangeable: nothing marks padding, or some tensor can't grow.
        """
        if self.marked is None or self.ids is None:
            raise Unchangeable
        ids, marked = self.ids, self.marked
        seen = ~self.content if self.inverted else self.content

        def grow(tensor: torch.Tensor, path: str) -> torch.Tensor:
            places = [d for d, size in enumerate(tensor.shape) if size == self.length]
            if not places:
                return tensor
            if places != [1] or tensor.ndim != 2:
                raise Unchangeable
            edge = tensor[:, :1] if left else tensor[:, -1:]
            more = edge.expand(-1, count).clone()
            given = path.startswith("[") and is_binary(tensor)
            if path == marked or (given and torch.equal(tensor[0].cpu() != 0, seen)):
                more.fill_(int(self.inverted))
            elif torch.equal(tensor[0].cpu(), ids.to(tensor.dtype)):
                more.fill_(pad)
            elif tensor.dtype == torch.int64 and path in ("labels", "label"):
                more.fill_(-100)
            return torch.cat([more, tensor] if left else [tensor, more], 1)

        def more(given: torch.Tensor, value: int) -> torch.Tensor:
            fill = torch.full((count,), value, dtype=given.dtype)
            return torch.cat([fill, given] if left else [given, fill])

        return replace(self._changed(grow), content=more(self.content, 0), ids=more(ids, pad))

    def _changed(self, change: Callable[[torch.Tensor, str], torch.Tensor]) -> RowCall:
        found = 0

        def apply(value: Any, path: str) -> Any:
            nonlocal found
            paths = {id(tensor): name for name, tensor in tensors(value, path)}

            def one(tensor: torch.Tensor) -> torch.Tensor:
                nonlocal found
                result = change(tensor, paths.get(id(tensor), path))
                found += result.shape != tensor.shape
                return result

            return map_tensors(value, one)

        args = tuple(apply(value, f"[{number}]") for number, value in enumerate(self.args))
        kwargs = {name: apply(value, name) for name, value in self.kwargs.items()}
        if not found and self.padded:
            raise Unchangeable
        return replace(self, args=args, kwargs=kwargs)


def cut(tensor: torch.Tensor, length: int, span: slice) -> torch.Tensor:
    """The span of every dimension that has the length.

    Raises:
        Unchangeable: features are as many as positions.
    """
    places = [d for d, size in enumerate(tensor.shape) if size == length]
    if len(places) > 1 and tensor.is_floating_point() and not _is_mask(tensor):
        raise Unchangeable
    index: list[Index] = [slice(None)] * tensor.ndim
    for place in places:
        index[place] = span
    return tensor[tuple(index)]


def span_of(tensor: torch.Tensor, length: int, span: slice) -> torch.Tensor:
    """The span of every dimension of an output that has the length."""
    index = tuple(span if size == length else slice(None) for size in tensor.shape)
    return tensor[index]


def gap(padded: torch.Tensor, alone: torch.Tensor, length: int, span: slice) -> float | None:
    """How far an output is from that of the same row without padding, at its content.

    Returns:
        The largest difference relative to the spread of the output; ``None`` where the two can't be compared.
    """
    mine = padded if padded.shape == alone.shape else span_of(padded, length, span)
    if mine.shape != alone.shape or not alone.numel():
        return None
    mine, other = mine.detach().double(), alone.detach().double()
    finite = mine.isfinite() & other.isfinite()
    if not bool(finite.any()):
        return None
    largest = float(other[finite].abs().max())
    spread = max(float(other[finite].std(correction=0)), 1e-2 * largest) or 1.0
    return float((mine - other)[finite].abs().max()) / spread


def largest_gap(padded: Any, alone: Any, length: int, span: slice) -> float | None:
    """The largest :func:`gap` among the outputs of two calls; ``None`` where none can be compared."""
    others = dict(tensors(alone))
    found = [
        gap(tensor, others[path], length, span)
        for path, tensor in tensors(padded)
        if path in others and tensor.is_floating_point() and tensor.ndim > 0
    ]
    return max((one for one in found if one is not None), default=None)


def _is_mask(tensor: torch.Tensor) -> bool:
    values = tensor.detach()
    return bool(((values == values.min()) | (values == values.max())).all())


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def is_binary(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds zeros and ones only."""
    if tensor.dtype == torch.bool:
        return True
    if tensor.is_complex():
        return False
    return bool(((tensor == 0) | (tensor == 1)).all())


def floats(outputs: Any) -> dict[str, torch.Tensor]:
    """The floating-point outputs by path, without their graph."""
    return {path: t.detach() for path, t in tensors(outputs) if t.is_floating_point() and t.ndim}
