"""What modules keep beside their parameters and saved buffers: kept, compared, put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from debugkit.state.tensor_state import same_bits
from debugkit.tracing.source import is_library_class

_REGISTRIES = frozenset({"training", "_parameters", "_modules", "_buffers", "_non_persistent_buffers_set"})
_LARGEST = 2**26
_LONGEST = 1000
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Memory:
    """The attributes of a model's modules that a ``state_dict`` does not hold, as they are now.

    Plain attributes with their contents, and buffers that are not persistent; a copy of each tensor and array.
    Parameters that an attribute refers to are left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: dict[str, tuple[dict[str, Any], str, Any]] = {}
        self._modules = list(model.named_modules())
        for name, attributes, key in self._places():
            self._kept[name] = (attributes, key, _keep(attributes[key], depth=3))

    def changed(self) -> list[str]:
        """Dotted names of the attributes that are not as they were, those that have been added included."""
        now = {name: (attributes, key) for name, attributes, key in self._places()}
        before = [
            name
            for name, (attributes, key, kept) in self._kept.items()
            if key not in attributes or not _is_same(kept, attributes[key])
        ]
        return [*before, *(name for name in now if name not in self._kept)]

    def put_back(self, *names: str) -> None:
        """Make some attributes as they were; all without names."""
        for name, attributes, key in list(self._places()):
            if name not in self._kept and (not names or name in names):
                del attributes[key]
        for name, (attributes, key, kept) in self._kept.items():
            if not names or name in names:
                attributes[key] = _put_back(kept)

    def _places(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        for path, module in self._modules:
            start = f"{path}." if path else ""
            passing = module._non_persistent_buffers_set
            yield from ((f"{start}{key}", module._buffers, key) for key in module._buffers if key in passing)
            for key in vars(module):
                if key not in _REGISTRIES and not key.endswith("_hooks") and "_hooks_" not in key:
                    yield f"{start}{key}", vars(module), key


class _Kept:
    def __init__(self, kind: str, value: Any, copy: Any = None) -> None:
        self.kind, self.value, self.copy = kind, value, copy


def _keep(value: Any, depth: int) -> _Kept:
    if isinstance(value, nn.Parameter):
        return _Kept("plain", value)
    if isinstance(value, torch.Tensor):
        small = value.layout is torch.strided and not value.is_meta and value.nbytes <= _LARGEST
        return _Kept("tensor", value, value.detach().clone() if small else None)
    if isinstance(value, np.ndarray):
        return _Kept("array", value, value.copy() if value.nbytes <= _LARGEST else None)
    if isinstance(value, _PLAIN) or not depth:
        return _Kept("plain", value)
    if isinstance(value, (list, deque, tuple)) and len(value) <= _LONGEST:
        kind = "tuple" if isinstance(value, tuple) else "list"
        return _Kept(kind, value, [_keep(item, depth - 1) for item in value])
    if isinstance(value, dict) and len(value) <= _LONGEST:
        return _Kept("dict", value, {key: _keep(item, depth - 1) for key, item in value.items()})
    if _is_users_object(value):
        return _Kept("object", value, {key: _keep(item, depth - 1) for key, item in vars(value).items()})
    return _Kept("plain", value)


def _is_users_object(value: Any) -> bool:
    if isinstance(value, (type, nn.Module)) or callable(value) or not hasattr(value, "__dict__"):
        return False
    return not is_library_class(type(value))


def _is_same(kept: _Kept, now: Any) -> bool:
    if kept.kind == "plain":
        return now is kept.value or (
            isinstance(now, _PLAIN) and type(now) is type(kept.value) and now == kept.value
        )
    if type(now) is not type(kept.value):
        return False
    if kept.kind == "tensor":
        return now is kept.value if kept.copy is None else same_bits(now.detach(), kept.copy)
    if kept.kind == "array":
        return now is kept.value if kept.copy is None else _bytes(now) == _bytes(kept.copy)
    if kept.kind in ("list", "tuple"):
        return len(now) == len(kept.copy) and all(map(_is_same, kept.copy, now))
    items = vars(now) if kept.kind == "object" else now
    return items.keys() == kept.copy.keys() and all(_is_same(kept.copy[key], items[key]) for key in items)


def _bytes(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.shape, array.dtype.str, array.tobytes()


def _put_back(kept: _Kept) -> Any:
    value = kept.value
    if kept.kind == "tensor" and kept.copy is not None:
        with torch.no_grad():
            if not same_bits(value.detach(), kept.copy):
                value.detach().copy_(kept.copy)
    elif kept.kind == "array" and kept.copy is not None and value.flags.writeable:
        np.copyto(value, kept.copy)
    elif kept.kind == "list":
        contents = [_put_back(item) for item in kept.copy]
        value.clear()
        value.extend(contents)
    elif kept.kind == "tuple":
        for item in kept.copy:
            _put_back(item)
    elif kept.kind in ("dict", "object"):
        held = vars(value) if kept.kind == "object" else value
        items = {key: _put_back(item) for key, item in kept.copy.items()}
        held.clear()
        held.update(items)
    return value
