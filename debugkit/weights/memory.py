"""Where tensors lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Span:
    """A stretch of one storage.

    Attributes:
        storage: tells storages apart.
        first: its first byte in the storage.
        end: the byte after its last.
    """

    storage: int
    first: int
    end: int

    def contains(self, other: Span) -> bool:
        """Whether the other stretch lies inside."""
        return self.storage == other.storage and self.first <= other.first and other.end <= self.end

    def overlaps(self, other: Span) -> bool:
        """Whether some byte belongs to both."""
        return self.storage == other.storage and self.first < other.end and other.first < self.end


def span_of(tensor: torch.Tensor) -> Span | None:
    """The memory of a dense tensor without gaps; ``None`` for tensors that have none of their own."""
    if isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)):
        return None
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_meta or not tensor.numel() or not tensor.untyped_storage().data_ptr():
        return None
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if reach + 1 != tensor.numel():
        return None
    size = tensor.element_size()
    first = int(tensor.storage_offset()) * size
    return Span(tensor.untyped_storage().data_ptr(), first, first + tensor.numel() * size)
