"""The model's own call inside a step: its tensors by name, and the same call with other rows or values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from debugkit.data.batch import LABEL_KEYS, map_tensors, tensors


@dataclass(frozen=True, eq=False)
class RootCall:
    """How a step calls the model as a whole.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        names: the parameters of ``forward`` that the positional arguments are for, as far as they have names.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...] = ()

    @staticmethod
    def of(model: torch.nn.Module, call: tuple[tuple[Any, ...], Mapping[str, Any]]) -> RootCall:
        """The call ``(args, kwargs)`` of a model."""
        args, kwargs = call
        return RootCall(tuple(args), dict(kwargs), _parameter_names(model, len(args)))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its path, such as ``input_ids`` or ``x[0]``; each tensor once."""
        given: dict[str, Any] = {
            self.names[number] if number < len(self.names) else f"[{number}]": value
            for number, value in enumerate(self.args)
        }
        found = [*tensors(given), *tensors(dict(self.kwargs))]
        names: dict[int, str] = {}
        for path, tensor in found:
            names.setdefault(id(tensor), path)
        return {path: tensor for path, tensor in found if names[id(tensor)] == path}

    def inputs(self, rows: int) -> dict[str, torch.Tensor]:
        """The tensors with one entry for each of so many rows, labels apart."""
        return {
            path: tensor
            for path, tensor in self.tensors.items()
            if tensor.ndim >= 1 and len(tensor) == rows and tensor.numel() and not is_label(path)
        }

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> RootCall:
        """The same call with ``function`` applied to each tensor."""
        return RootCall(
            map_tensors(self.args, function), map_tensors(dict(self.kwargs), function), self.names
        )

    def with_tensors(self, changed: Mapping[str, torch.Tensor]) -> RootCall:
        """The same call with other tensors at some paths."""
        swapped = {id(self.tensors[path]): tensor for path, tensor in changed.items()}
        return self.mapped(lambda tensor: swapped.get(id(tensor), tensor))

    def take(self, rows: Sequence[int], count: int) -> RootCall:
        """The same call with some of its ``count`` rows, in this order, also several times."""

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim < 1 or len(tensor) != count or tensor.layout is not torch.strided:
                return tensor
            return tensor.detach().index_select(0, torch.as_tensor(list(rows), device=tensor.device))

        return self.mapped(pick)


def is_label(path: str) -> bool:
    """Whether a path is that of labels by its name, such as ``labels`` or ``start_labels``."""
    last = path.rpartition(".")[2]
    return last in LABEL_KEYS or last.endswith(("label", "labels"))


def _parameter_names(model: torch.nn.Module, count: int) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(places[:count])
