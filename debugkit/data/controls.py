"""Batches for controls: the same labels, with other inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from debugkit.data.batch import map_tensors, size, sliceable, split, take, tensors
from debugkit.errors import Unavailable

_LEAST_ROWS = 4


class Parts:
    """A batch whose labels are known apart from its inputs.

    Args:
        batch: a batch of at least four rows, every tensor of which has one entry per row.

    Attributes:
        batch: the same.
        rows: its number of rows.
        labels: the tensors of its labels.

    Raises:
        Unavailable: rows can't be told, there are no labels, or these are an input too.
    """

    def __init__(self, batch: Any) -> None:
        rows = size(batch)
        inputs, labels = split(batch)
        self.batch = batch
        self.labels = [tensor for _, tensor in tensors(labels)] if labels is not None else []
        if not self.labels:
            raise Unavailable("the batch has no labels beside its inputs")
        if rows is None or not sliceable(batch):
            raise Unavailable("the batch can't be cut into rows")
        if rows < _LEAST_ROWS:
            raise Unavailable(f"the batch has {rows} row{'' if rows == 1 else 's'}; {_LEAST_ROWS} are needed")
        self.rows = rows
        found = {id(tensor) for _, tensor in tensors(inputs)}
        if not found:
            raise Unavailable("the batch has no tensors beside its labels")
        if any(id(tensor) in found for tensor in self.labels):
            raise Unavailable("the labels of the batch are its inputs")

    @property
    def variety(self) -> int:
        """How many different labels the rows have."""
        return max(
            len({*map(str, labels.detach().reshape(self.rows, -1).tolist())}) for labels in self.labels
        )

    def blind(self) -> Any:
        """The batch with the inputs of the first row in every row."""
        replicated = take(self.batch, [0] * self.rows)
        given = [tensor for _, tensor in tensors(self.batch)]
        if len(given) != len([*tensors(replicated)]):
            raise Unavailable("the rows of the batch can't be replaced")
        following: Iterator[torch.Tensor] = iter(given)
        known = {id(tensor) for tensor in self.labels}

        def keep_labels(tensor: torch.Tensor) -> torch.Tensor:
            original = next(following)
            return original if id(original) in known else tensor

        return map_tensors(replicated, keep_labels)

    def with_labels(self, batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """A batch made from this one, with its labels changed."""
        known = {id(tensor) for tensor in self.labels}
        return map_tensors(batch, lambda tensor: change(tensor) if id(tensor) in known else tensor)

    def noise(self) -> Any:
        """The batch with noise in the place of its inputs.

        Numbers are drawn from a standard normal distribution, ids between the smallest and the largest one; masks
        stay as they are.
        """
        generator = torch.Generator().manual_seed(0)
        known = {id(tensor) for tensor in self.labels}

        def draw(tensor: torch.Tensor) -> torch.Tensor:
            plain = tensor.layout is torch.strided and not tensor.is_complex() and tensor.numel()
            if id(tensor) in known or not plain:
                return tensor
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
            else:
                low, high = int(tensor.min()), int(tensor.max())
                if high - low < 2:
                    return tensor
                values = torch.randint(low, high + 1, tensor.shape, generator=generator)
            return values.to(tensor.device, tensor.dtype)

        return map_tensors(self.batch, draw)
