"""Reading a GGUF file; quantised tensors are dequantised one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from debugkit.checkpoints.tensor import StoredTensor
from debugkit.errors import UsageError, one_line
from debugkit.weights.matrix import Array

_PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_gguf(path: Path) -> list[StoredTensor]:
    """The tensors of a file, in its order.

    Raises:
        UsageError: the extra is missing, or the file is corrupt.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UsageError('GGUF files need an extra: pip install "debugkit[gguf]"') from error
    try:
        held = GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"`{path}` is no GGUF file, or is cut off: {one_line(error, 160)}") from error
    return [_tensor(tensor) for tensor in held.tensors]


def _tensor(tensor: Any) -> StoredTensor:
    kind = tensor.tensor_type.name
    shape = tuple(int(length) for length in reversed(tensor.shape))
    dtype = _PLAIN.get(kind, "float32" if "Q" in kind else f"gguf {kind}")

    def load() -> Array:
        if kind == "BF16":
            return np.asarray(tensor.data).view(np.uint16).reshape(shape)
        if kind in _PLAIN:
            return np.asarray(tensor.data).reshape(shape)
        from gguf.quants import dequantize

        return np.asarray(dequantize(tensor.data, tensor.tensor_type)).reshape(shape)

    quantised = "" if kind in _PLAIN else kind
    return StoredTensor(tensor.name, shape, dtype, int(tensor.n_bytes), load, None, quantised)
