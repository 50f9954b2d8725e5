"""A batch, whatever its shape: its tensors, its labels, its size, some of its rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

LABEL_KEYS = ("labels", "label", "targets", "target", "label_ids", "y")


def map_tensors(batch: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """The same structure with ``function`` applied to each tensor."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in batch.items()}
        return _rebuild_mapping(batch, mapped)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(value, function) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changes = {
            f.name: map_tensors(getattr(batch, f.name), function) for f in dataclasses.fields(batch) if f.init
        }
        return dataclasses.replace(batch, **changes)
    to = getattr(batch, "to", None)
    if callable(to) and not isinstance(batch, (str, bytes)):
        probe = next(iter(_attribute_tensors(batch)), None)
        if probe is not None and (moved := function(probe)).device != probe.device:
            return to(moved.device)
    return batch


def fresh(batch: Any, device: torch.device) -> Any:
    """A copy of the batch on ``device``, so that a step may write to its inputs without trace."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device, copy=True).requires_grad_(tensor.requires_grad)

    return map_tensors(batch, copy)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on ``device``."""
    return map_tensors(batch, lambda tensor: tensor if tensor.device == device else tensor.to(device))


def tensors(batch: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a batch with its path, such as ``input_ids`` or ``[0].pixel_values``."""
    if isinstance(batch, torch.Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(batch, (list, tuple)):
        for index, value in enumerate(batch):
            yield from tensors(value, f"{path}[{index}]")
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name), f"{path}.{field.name}" if path else field.name)


def split(batch: Any) -> tuple[Any, Any]:
    """``(inputs, labels)`` of a batch; labels are ``None`` where there is nothing like them.

    Mappings, named tuples and dataclasses give the value under one of :data:`LABEL_KEYS`; other tuples and lists
    of two or more give their last element. A single input is given bare, several as a tuple, named ones as a
    mapping.
    """
    if (fields := _fields(batch)) and not {*fields}.isdisjoint(LABEL_KEYS):
        batch = fields
    if isinstance(batch, Mapping):
        for key in LABEL_KEYS:
            if key in batch and batch[key] is not None:
                rest = {name: value for name, value in batch.items() if name != key}
                return _rebuild_mapping(batch, rest), batch[key]
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0], None
    return batch, None


def _fields(batch: Any) -> dict[str, Any]:
    """The fields of a named tuple or a dataclass by name."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, (type, Mapping)):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {}


def size(batch: Any) -> int | None:
    """The number of samples: the most common length of the tensors' first dimension, or ``None``."""
    lengths = Counter(tensor.shape[0] for _, tensor in tensors(batch) if tensor.ndim >= 1)
    if not lengths:
        return len(batch) if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)) else None
    most = max(lengths.values())
    return next(length for length, count in lengths.items() if count == most)


def sliceable(batch: Any) -> bool:
    """Whether every tensor of the batch has the batch as its first dimension."""
    rows = size(batch)
    found = [tensor for _, tensor in tensors(batch)]
    return (
        bool(found) and bool(rows) and all(tensor.ndim >= 1 and tensor.shape[0] == rows for tensor in found)
    )


def take(batch: Any, rows: Sequence[int]) -> Any:
    """The batch with only some rows; lists as long as the batch are cut too."""
    count = size(batch)

    def pick(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            index = torch.as_tensor(list(rows), device=value.device, dtype=torch.long)
            return value.index_select(0, index)
        if isinstance(value, Mapping):
            return _rebuild_mapping(value, {key: pick(item) for key, item in value.items()})
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(pick(item) for item in value))
        if isinstance(value, (list, tuple)):
            flat = not any(isinstance(item, (torch.Tensor, list, tuple, Mapping)) for item in value)
            if flat and len(value) == count:
                return type(value)(value[row] for row in rows)
            return type(value)(pick(item) for item in value)
        if fields := _fields(value):
            return dataclasses.replace(value, **{name: pick(item) for name, item in fields.items()})
        return value

    return pick(batch)


def input_ids(batch: Any) -> torch.Tensor | None:
    """The token ids ``[batch, length]`` of a batch: ``input_ids``, or the one integer matrix among its inputs."""
    inputs, _ = split(batch)
    if isinstance(inputs, Mapping):
        value = inputs.get("input_ids")
        return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None
    found = [
        tensor
        for path, tensor in tensors(inputs)
        if tensor.ndim == 2 and tensor.dtype in (torch.int64, torch.int32)
    ]
    return found[0] if found else None


def named(batch: Any, name: str) -> torch.Tensor | None:
    """A tensor of a batch by the last part of its path, such as ``attention_mask``."""
    for path, tensor in tensors(batch):
        if path.rpartition(".")[2] == name:
            return tensor
    return None


def _attribute_tensors(value: Any) -> Iterator[torch.Tensor]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        for item in attributes.values():
            if isinstance(item, torch.Tensor):
                yield item
            elif isinstance(item, dict):
                yield from (inner for inner in item.values() if isinstance(inner, torch.Tensor))


def _rebuild_mapping(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the original's kind; a plain dict where that can't be built from items."""
    if type(original) is dict:
        return items
    try:
        return type(original)(items)  # type: ignore[call-arg]
    except Exception:
        return items
