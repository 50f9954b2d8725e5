"""Reading a PyTorch state dict: without running code from the file, and without its values where it can be mapped."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debugkit.checkpoints.tensor import FLOATS, StoredTensor, mapped, unreadable
from debugkit.errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

_MAPPED = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")
_NESTS = ("state_dict", "model_state_dict", "model", "module", "weights", "params")


def read_pickle(path: Path) -> list[StoredTensor]:
    """The tensors of a state dict, also of one that is nested in a training checkpoint.

    Raises:
        UsageError: the file holds no weights, needs code to be loaded, or is corrupt.
        OSError: it can't be read.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    is_zip = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), FakeTensorMode() if is_zip else nullcontext():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"`{path}` is a pickle that holds more than weights, or none; save `model.state_dict()` instead"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(f"`{path}` is corrupt or cut off: {one_line(error, 160)}") from error
    found = _tensors(held, path).items()
    return [_mapped(name, tensor, path) if is_zip else _held(name, tensor) for name, tensor in found]


def _tensors(held: Any, path: Path) -> dict[str, torch.Tensor]:
    """The outermost mapping that has tensors, or the nested one with the usual name."""
    import torch

    while isinstance(held, Mapping):
        for nest in _NESTS:
            inner = held.get(nest)
            if isinstance(inner, Mapping) and any(
                isinstance(value, torch.Tensor) for value in inner.values()
            ):
                held = inner
                break
        found = {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)}
        if found:
            return found
        held = next((held[nest] for nest in _NESTS if isinstance(held.get(nest), Mapping)), None)
    raise UsageError(f"`{path}` holds no weights: there is no state dict in it")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _mapped(name: str, tensor: torch.Tensor, path: Path) -> StoredTensor:
    import torch

    dtype, shape = _dtype(tensor), tuple(tensor.shape)
    offset = (
        getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if tensor.layout is torch.strided
        else None
    )
    if offset is None or tensor.is_quantized or dtype not in _MAPPED:
        return StoredTensor(name, shape, f"packed {dtype}", 0, unreadable(name))
    start = int(offset) + int(tensor.storage_offset()) * tensor.element_size()
    if tensor.is_contiguous():
        return mapped(name, shape, dtype, path, start)
    strides, span = tensor.stride(), 1 + sum((n - 1) * s for n, s in zip(shape, tensor.stride(), strict=True))
    flat = mapped(name, (span,), dtype, path, start)

    def load() -> Any:
        import numpy as np

        values = flat.load()
        steps = tuple(step * values.itemsize for step in strides)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False))

    return StoredTensor(name, shape, dtype, tensor.numel() * tensor.element_size(), load, (str(path), start))


def _held(name: str, tensor: torch.Tensor) -> StoredTensor:
    from debugkit.weights.model_matrices import values_of

    place = ("memory", tensor.data_ptr()) if tensor.numel() else None
    return StoredTensor(
        name,
        tuple(tensor.shape),
        _dtype(tensor),
        tensor.nbytes,
        lambda: values_of(tensor.contiguous()),
        place,
    )
