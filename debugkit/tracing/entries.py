"""Entries: the places where data first meets the weights of a model, and what it looks like there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit.tracing.cuts import tensors_in
from debugkit.tracing.source import user_location

_FIRST = frozenset({"linear", "bilinear", "multi_head_attention_forward"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "einsum", "tensordot"})
_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"})
_RECURRENT_CELLS = frozenset({"rnn_tanh_cell", "rnn_relu_cell"})
_TAKE_FIRST = _FIRST | _CONVOLUTIONS.keys() | _TRANSPOSED.keys() | _RECURRENT | _RECURRENT_CELLS

_MOST_ENTRIES = 256
_SAMPLE_ROWS = 8
_SAMPLE_VALUES = 2**20
_ALL_SAMPLES = 2**22


@dataclass(frozen=True, eq=False)
class Entry:
    """The first product of values that no weight has touched with a layer's weights.

    Such values may come with others in one tensor: numbers beside embeddings.

    Attributes:
        op: such as ``conv2d``, ``linear`` or ``lstm``.
        module: dotted name of the module in whose forward it ran; ``None`` outside the model.
        location: the user's source line.
        shape: of the values, with the batch.
        weight_shape: of the weights.
        dims: how many dimensions a convolution slides over; 0 for anything else.
        minimum: smallest value.
        maximum: largest value.
        mean: of all values.
        std: their population standard deviation.
        sample: of values with three dimensions and more: the first rows ``[rows, ...]`` float32 on the CPU, where
            they are not too large.
    """

    op: str
    module: str | None
    location: str | None
    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    dims: int
    minimum: float
    maximum: float
    mean: float
    std: float
    sample: torch.Tensor | None = field(repr=False, default=None)


class EntryWatch:
    """Collects the entries of one step."""

    def __init__(self) -> None:
        self._seen: set[tuple[str | None, str, tuple[int, ...]]] = set()
        self._entries: list[Entry] = []
        self._kept = 0

    def see(self, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: str | None) -> None:
        """Look at one call of a torch function.

        Args:
            op: its name.
            args: positional arguments.
            kwargs: keyword arguments.
            module: the module whose forward is running.
        """
        if (op not in _TAKE_FIRST and op not in _PRODUCTS) or len(self._entries) >= _MOST_ENTRIES:
            return
        given = [*tensors_in(args, kwargs)]
        weights = [one for one in given if _is_weight(one) and one.ndim >= 2]
        candidates = given[:1] if op in _TAKE_FIRST else given
        data = next((one for one in candidates if _is_data(one)), None)
        if data is None or not weights:
            return
        joined = data.grad_fn is not None
        key = (module, op, tuple(data.shape[1:]))
        if key in self._seen:
            return
        self._seen.add(key)
        with torch.no_grad(), suppress(RuntimeError):  # values under `torch.func` transforms can't be read
            self._entries.append(self._describe(op, data, weights[0], module, keep=not joined))

    def entries(self) -> tuple[Entry, ...]:
        """What was seen, in order."""
        return tuple(self._entries)

    def _describe(
        self, op: str, data: torch.Tensor, weight: torch.Tensor, module: str | None, keep: bool
    ) -> Entry:
        values = data.detach()
        if values.element_size() < 4:
            values = values.float()
        low, high = values.aminmax()
        std, mean = torch.std_mean(values, correction=0)
        dims = _CONVOLUTIONS.get(op, 0)
        return Entry(
            op=op,
            module=module,
            location=user_location(),
            shape=tuple(data.shape),
            weight_shape=tuple(weight.shape),
            dims=dims,
            minimum=float(low),
            maximum=float(high),
            mean=float(mean),
            std=float(std),
            sample=self._sample(values, dims) if keep and op in _TAKE_FIRST else None,
        )

    def _sample(self, values: torch.Tensor, dims: int) -> torch.Tensor | None:
        if dims and values.ndim == dims + 1:
            values = values.unsqueeze(0)
        if values.ndim < 3:
            return None
        rows = min(_SAMPLE_ROWS, len(values), _SAMPLE_VALUES * len(values) // values.numel())
        kept = rows * values.numel() // len(values)
        if not rows or self._kept + kept > _ALL_SAMPLES:
            return None
        self._kept += kept
        return values[:rows].to("cpu", torch.float32, copy=True)


def _is_weight(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad


def _is_joined(tensor: torch.Tensor) -> bool:
    """Whether a tensor is data beside computed values, as numbers beside embeddings are."""
    node: Any = tensor.grad_fn
    return type(node).__name__.startswith("CatBackward") and any(
        after is None for after, _ in node.next_functions
    )


def _is_data(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds real numbers that were not computed with weights (as far as gradients flow)."""
    return (
        not isinstance(tensor, torch.nn.Parameter)
        and (tensor.grad_fn is None or _is_joined(tensor))
        and tensor.is_floating_point()
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_nested
        and tensor.numel() > 0
    )
