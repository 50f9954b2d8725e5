"""Reading the header of a safetensors file; its tensors are mapped one at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from debugkit.checkpoints.tensor import STORED, StoredTensor, mapped, unreadable
from debugkit.errors import UsageError

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_LONGEST_HEADER = 10**8


def read_safetensors(path: Path) -> list[StoredTensor]:
    """The tensors of a file, in the order in which they lie there.

    Raises:
        UsageError: the file is corrupt or cut off.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise UsageError(
                f"`{path}` is no safetensors file, or is cut off: its header does not fit into it"
            )
        try:
            header = json.loads(file.read(length))
            found = [
                _tensor(name, facts, path, 8 + length)
                for name, facts in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"`{path}` is no safetensors file: its header can't be read") from error
    for tensor in found:
        start = tensor.place[1] if tensor.place else 0
        if start + tensor.nbytes > size:
            raise UsageError(
                f"`{path}` is cut off: `{tensor.name}` ends at byte {start + tensor.nbytes:,}, the file at {size:,}"
            )
    return found


def _tensor(name: str, facts: dict[str, Any], path: Path, base: int) -> StoredTensor:
    shape = tuple(int(length) for length in facts["shape"])
    begin, end = facts["data_offsets"]
    dtype = _DTYPES.get(facts["dtype"])
    if dtype is None:
        return StoredTensor(
            name, shape, str(facts["dtype"]).lower(), end - begin, unreadable(name), (str(path), base + begin)
        )
    if math.prod(shape) * np.dtype(STORED.get(dtype, dtype)).itemsize != end - begin or begin < 0:
        raise ValueError(f"`{name}` has another length than its shape")
    return mapped(name, shape, dtype, path, base + begin)
