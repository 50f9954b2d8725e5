"""Where the elements of a reshaped tensor come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

# fmt: off
_MOVES = frozenset(
    {
        "view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose",
        "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "T", "mT", "select", "narrow", "getitem",
        "contiguous", "clone", "detach", "data", "to", "float", "double", "half", "bfloat16", "long", "int", "type",
        "type_as", "cpu", "cuda", "alias",
    }
)
_KEEPS = frozenset(
    {
        "contiguous", "clone", "detach", "data", "to", "float", "double", "half", "bfloat16", "long", "int", "type",
        "type_as", "cpu", "cuda", "alias",
    }
)
# fmt: on
_LARGEST = 2**24


class Places:
    """Remembers how tensors were reshaped.

    Attributes:
        widened: ids of the tensors that were just given a new axis.
    """

    def __init__(self) -> None:
        self.widened: set[int] = set()
        self._moves: dict[int, tuple[torch.Tensor, torch.Tensor, Callable[..., Any], Any, Any]] = {}

    def see(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Look at one call of a torch function."""
        if name not in _MOVES or not args or not isinstance(result, torch.Tensor):
            return
        given = args[0]
        if not isinstance(given, torch.Tensor) or given is result:
            return
        if name == "getitem" and not _is_plain(args[1]):
            return
        self._moves[id(result)] = (result, given, func, args, None if name in _KEEPS else kwargs)
        if (
            name == "unsqueeze"
            or (name == "getitem" and result.ndim > given.ndim)
            or (name in _KEEPS and id(given) in self.widened)
        ):
            self.widened.add(id(result))

    def origin(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor that one was reshaped from; itself where it was not."""
        while id(tensor) in self._moves:
            tensor = self._moves[id(tensor)][1]
        return tensor

    def of(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The tensor that one was reshaped from, and the place of each element in it.

        Returns:
            The origin, and a tensor of the shape of the given one with flat indices into the origin; ``None``
            where that is too large to hold.
        """
        moves = []
        origin = tensor
        while id(origin) in self._moves:
            _, given, func, args, kwargs = self._moves[id(origin)]
            if kwargs is not None:
                moves.append((func, args, kwargs))
            origin = given
        if origin.numel() > _LARGEST:
            return None
        places = torch.arange(origin.numel(), dtype=torch.int32).reshape(origin.shape)
        try:
            for func, args, kwargs in reversed(moves):
                places = func(places, *args[1:], **kwargs)
            return origin, places.reshape(tensor.shape)
        except (RuntimeError, TypeError, IndexError):  # a view as another dtype
            return None


def _is_plain(index: Any) -> bool:
    """Whether an index takes whole slices and picks nothing by value."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None or part is Ellipsis or (isinstance(part, (int, slice)) and not isinstance(part, bool))
        for part in parts
    )
