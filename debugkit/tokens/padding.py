"""A model's call with its padding changed: cut off, masked, or moved to the other side."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from debugkit.data.batch import map_tensors, tensors

_USUAL = "attention_mask"
OTHER_MASKS = (
    "decoder",
    "encoder",
    "cross",
    "head",
    "tgt",
    "memory",
    "causal",
    "bool_masked",
    "mask_time",
    "token_type",
)
"""How masks begin that say something else than where padding is."""

Change = Callable[[torch.Tensor], torch.Tensor]


class Unchangeable(Exception):  # noqa: N818 - a refusal, not an error
    """The call holds something that does not go with the change."""


@dataclass(frozen=True, eq=False)
class PaddedCall:
    """A call of a model on padded rows.

    Attributes:
        args: positional arguments.
        kwargs: named ones.
        content: bool ``[rows, length]``: what is no padding.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    content: torch.Tensor

    def changed(self, change: Change) -> PaddedCall:
        """The call with every tensor changed."""
        return replace(self, args=map_tensors(self.args, change), kwargs=map_tensors(self.kwargs, change))

    def span(self, row: int) -> slice:
        """Where the content of a row is.

        Raises:
            Unchangeable: there is padding inside of it, or nothing else.
        """
        places = self.content[row].nonzero().flatten().tolist()
        if not places or places[-1] - places[0] + 1 != len(places):
            raise Unchangeable
        return slice(places[0], places[-1] + 1)

    def trimmed(self, row: int) -> PaddedCall:
        """One row alone, without padding.

        Raises:
            Unchangeable: some tensor has the length at an unexpected place.
        """
        rows, length = self.content.shape
        span = self.span(row)

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim >= 2 and tuple(tensor.shape[:2]) == (rows, length):
                if length in tensor.shape[2:]:
                    raise Unchangeable
                return tensor[row : row + 1, span]
            if length in tensor.shape[1:]:
                raise Unchangeable
            return tensor[row : row + 1] if tensor.ndim and len(tensor) == rows else tensor

        return replace(self.changed(cut), content=self.content[row : row + 1, span])

    def on_the_right(self) -> PaddedCall:
        """Every row with its padding moved behind its content."""
        rows, length = self.content.shape
        starts = [self.span(row).start for row in range(rows)]

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim < 2 or tuple(tensor.shape[:2]) != (rows, length):
                return tensor
            return torch.stack([part.roll(-start, 0) for part, start in zip(tensor, starts, strict=True)])

        return replace(self.changed(move), content=move(self.content))

    def masked(self, given: torch.Tensor, wanted: torch.Tensor) -> PaddedCall:
        """The call with a mask, or its inverse, replaced.

        Raises:
            Unchangeable: the mask does not reach the model.
        """
        hits = 0

        def swap(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal hits
            if tensor.shape != given.shape or tensor.is_complex():
                return tensor
            values = tensor.detach().cpu()
            if torch.equal(values.double(), given.double()):
                hits += 1
                return wanted.to(tensor)
            if values.dtype == torch.bool and torch.equal(values, ~given):
                hits += 1
                return (~wanted).to(tensor)
            return tensor

        found = self.changed(swap)
        if not hits:
            raise Unchangeable
        return found

    def with_masks(self, model: torch.nn.Module) -> Iterator[tuple[str, PaddedCall]]:
        """The call with the padding masked, for every parameter of the model that may mean that and is unset."""
        for name in unset_masks(model, self.args, self.kwargs):
            for mask in self.masks():
                yield name, replace(self, kwargs={**self.kwargs, name: mask})

    def masks(self) -> Iterator[torch.Tensor]:
        """What a mask of the padding may look like: 1 at content, true at padding, true at content."""
        device = next((t.device for _, t in tensors([self.args, self.kwargs])), torch.device("cpu"))
        content = self.content.to(device)
        yield from (content.long(), ~content, content)


def unset_masks(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """The parameters of a module's forward that may mean the padding of its input and get nothing.

    That is ``attention_mask`` where there is one, else what is called a mask and not one of something else.
    """
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return []
    names = [name for name in signature.parameters if "mask" in name and not name.startswith(OTHER_MASKS)]
    names = [_USUAL] if _USUAL in names else names
    return [name for name in names if given.get(name) is None]


@contextmanager
def giving(module: torch.nn.Module, name: str, mask: torch.Tensor) -> Iterator[None]:
    """Give a module a mask whenever it is called."""

    def add(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, name: mask}

    hook = module.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def gap(padded: Any, alone: Any, call: PaddedCall, row: int) -> float | None:
    """How far the outputs of a row are from those of the row alone, at its content.

    Returns:
        The largest difference relative to the spread of the outputs, infinity for NaN; ``None`` where nothing can be
        compared.
    """
    span, length = call.span(row), call.content.shape[1]
    largest = None
    for one, other in _pairs(padded, alone):
        if one.ndim == 0 or row >= len(one) or len(other) != 1:
            continue
        mine, reference = one[row], other[0]
        if mine.shape != reference.shape and mine.ndim and len(mine) == length:
            mine = mine[span]
        if mine.shape != reference.shape or not reference.numel():
            continue
        difference = float((mine.float() - reference.float()).abs().max())
        spread = float(other.float().std(correction=0)) or float(other.float().abs().max()) or 1.0
        largest = max(largest or 0.0, difference / spread if difference == difference else math.inf)
    return largest


def _pairs(one: Any, other: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    first, second = _floats(one), _floats(other)
    for path, tensor in first.items():
        if path in second:
            yield tensor, second[path]


def _floats(outputs: Any) -> Mapping[str, torch.Tensor]:
    return {path: t.detach().cpu() for path, t in tensors(outputs) if t.is_floating_point() and t.ndim > 0}


def rows_to_try(padding: Sequence[int], most: int = 2) -> list[int]:
    """The rows with the most padding that have some."""
    ranked = sorted((row for row, count in enumerate(padding) if count), key=lambda row: -padding[row])
    return ranked[:most]
