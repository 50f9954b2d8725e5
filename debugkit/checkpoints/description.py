"""What each tensor of a checkpoint is, read from shapes, companions and the config, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from debugkit.checkpoints.tensor import StoredTensor
from debugkit.weights.layer_spectrum import SHORTEST_SIDE
from debugkit.weights.matrix import Kind, Matrix, SkippedMatrix, equal_parts

_TABLE = re.compile(
    r"embed|embd|(^|[._])(wte|wpe|pos|position|positions|positional)([._]|$)|(^|\.)shared\.weight$"
)
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_GATES = {4: ("input", "forget", "cell", "output"), 3: ("reset", "update", "new")}
_THIRDS = ("first third", "second third", "last third")
_HEAD_BYTES = 4096
_FEW = 2

Cut = tuple[Kind, int, tuple[tuple[str, int], ...], int]


def describe(
    tensors: Sequence[StoredTensor], config: Mapping[str, Any]
) -> tuple[list[Matrix], list[SkippedMatrix]]:
    """The weight matrices, in the order of the checkpoint, and what is left out, with the reason."""
    known = _Known(tensors, config)
    tied = _tied(tensors)
    found: list[Matrix] = []
    skipped: list[SkippedMatrix] = []
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        cut = f"tied to `{tied[tensor.name]}`" if tensor.name in tied else known.cut(tensor)
        if isinstance(cut, str):
            skipped.append(SkippedMatrix(tensor.name, tensor.shape, cut))
            continue
        if (other := known.twin(tensor)) and _is_zero(tensor):
            skipped.append(SkippedMatrix(tensor.name, tensor.shape, f"all zero beside `{other}`"))
            continue
        kind, axis, parts, outputs = cut
        why = "embedding table" if kind == "embedding" else ""
        why = f"quantised ({tensor.quantised})" if tensor.quantised else why
        matrix = Matrix(
            tensor.name, kind, tensor.shape, tensor.dtype, tensor.load, parts, axis, outputs, unjudged=why
        )
        if min(min(sides) for _, _, *sides in matrix.sides) < SHORTEST_SIDE:
            skipped.append(SkippedMatrix(tensor.name, tensor.shape, f"a side under {SHORTEST_SIDE}"))
        else:
            found.append(matrix)
    return found, skipped


class _Known:
    """The tensors by name, and what the whole checkpoint tells of each."""

    def __init__(self, tensors: Sequence[StoredTensor], config: Mapping[str, Any]) -> None:
        nested = config.get("text_config")
        self._config = {**config, **(nested if isinstance(nested, dict) else {})}
        self._shapes = {tensor.name: tensor.shape for tensor in tensors}
        self._owned: dict[str, list[str]] = {}
        for name in self._shapes:
            self._owned.setdefault(_owner(name), []).append(name)
        self._packed = {
            _owner(tensor.name) for tensor in tensors if len(tensor.shape) >= 2 and not tensor.is_float
        }
        self._heights = Counter(tensor.shape[0] for tensor in tensors if len(tensor.shape) == 2)
        sides = [self._bias_side(tensor) for tensor in tensors if len(tensor.shape) == 2]
        self._transposed = sides.count(1) > 2 * sides.count(0)

    def cut(self, tensor: StoredTensor) -> str | Cut:
        """Kind, axis, parts and dimension of the outputs, or why the tensor stands for no matrix."""
        name, shape = tensor.name, tensor.shape
        if not tensor.size:
            return "empty"
        if not tensor.is_float:
            whole = re.fullmatch(r"u?int(16|32|64)|bool", tensor.dtype)
            packed = any(part in name for part in ("qweight", "qzeros", "packed"))
            return "whole numbers" if whole and not packed else f"quantised or packed ({tensor.dtype})"
        if (
            _owner(name) in self._packed
            and not tensor.quantised
            and not name.endswith((".weight", "masked_bias"))
        ):
            return "beside a quantised weight"
        if ".lora_" in name:
            return "adapter"
        if len(shape) == 2:
            return self._matrix(tensor)
        if shape[0] == 1:
            return "a table, or a matrix of unknown use"
        if len(shape) == 3 and self._vector(name, "bias") != shape[0] and min(shape[1:]) >= SHORTEST_SIDE:
            return "experts", 0, tuple((f"expert {index}", 1) for index in range(shape[0])), 0
        if len(shape) > 5:
            return "a table, or a matrix of unknown use"
        return "depthwise" if shape[1] == 1 else ("conv", 0, (), 0)

    def twin(self, tensor: StoredTensor) -> str | None:
        """Another tensor of the same owner and shape: one of the two can be a buffer that is not used yet."""
        owner = _owner(tensor.name)
        return next(
            (
                name
                for name in self._owned[owner]
                if name != tensor.name and self._shapes[name] == tensor.shape
            ),
            None,
        )

    def _matrix(self, tensor: StoredTensor) -> Cut:
        name, shape = tensor.name, tensor.shape
        if recurrent := _RECURRENT.search(name):
            return "recurrent", 0, self._gates(name, recurrent), 0
        bias = self._bias_side(tensor)
        if bias is None and self._vector(name, "bias") is None and self._is_table(name, shape):
            return "embedding", 0, (), 0
        outputs = (
            bias if bias is not None else int(self._transposed and self._vector(name, "bias") is not None)
        )
        if name.endswith("in_proj_weight") and shape[0] == 3 * shape[1]:
            return "attention", 0, equal_parts(("query", "key", "value"), shape[0]), 0
        return "linear", outputs, self._fused(shape[outputs], shape[1 - outputs], name), outputs

    def _is_table(self, name: str, shape: tuple[int, ...]) -> bool:
        """By the name, or since it has as many rows as the vocabulary, which but a head has no other matrix."""
        if _TABLE.search(".".join(name.split(".")[-3:])):
            return True
        if any(part in name for part in ("head", "output", "decoder", "classifier")):
            return False
        return shape[0] == self._config.get("vocab_size") and self._heights[shape[0]] <= _FEW

    def _fused(self, rows: int, columns: int, name: str) -> tuple[tuple[str, int], ...]:
        """The parts of a fused matrix, whose outputs are a sum that the config knows, or three times its inputs."""
        facts = self._config
        heads, width = facts.get("num_attention_heads"), facts.get("hidden_size")
        if isinstance(heads, int) and isinstance(width, int) and heads and name.endswith("qkv_proj.weight"):
            each = facts.get("head_dim") or width // heads
            groups = facts.get("num_key_value_heads") or heads
            if rows == (heads + 2 * groups) * each:
                return ("query", heads * each), ("key", groups * each), ("value", groups * each)
        inner = facts.get("intermediate_size")
        if isinstance(inner, int) and rows == 2 * inner and name.endswith("gate_up_proj.weight"):
            return equal_parts(("gate", "up"), rows)
        return equal_parts(_THIRDS, rows) if rows == 3 * columns else ()

    def _gates(self, name: str, found: re.Match[str]) -> tuple[tuple[str, int], ...]:
        """The gates of a recurrent matrix: its rows over the width of the state that its twin multiplies."""
        rows = self._shapes[name][0]
        tail = "".join(part or "" for part in found.groups()[1:])
        stem = name[: found.start()]
        inner = self._shapes.get(f"{stem}weight_hr{tail}") or self._shapes.get(f"{stem}weight_hh{tail}")
        gates = rows // inner[1] if inner and rows % inner[1] == 0 else 1
        if found[1] == "hr" or gates not in _GATES:
            return ()
        return equal_parts([f"{gate} gate" for gate in _GATES[gates]], rows)

    def _vector(self, name: str, kind: str) -> int | None:
        shape = self._shapes.get(f"{_owner(name)}.{kind}" if "." in name else kind)
        return shape[0] if shape is not None and len(shape) == 1 else None

    def _bias_side(self, tensor: StoredTensor) -> int | None:
        """The dimension of a matrix that the bias beside it fits, where it fits one alone."""
        bias = self._vector(tensor.name, "bias")
        if bias is None or len(tensor.shape) != 2 or tensor.shape[0] == tensor.shape[1]:
            return None
        return next((side for side in (0, 1) if tensor.shape[side] == bias), None)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _tied(tensors: Sequence[StoredTensor]) -> dict[str, str]:
    """Names of tensors that repeat an earlier one, value by value, with the name of that."""
    seen: dict[tuple[object, ...], list[StoredTensor]] = {}
    tied: dict[str, str] = {}
    for tensor in tensors:
        if len(tensor.shape) < 2 or not tensor.is_float or tensor.quantised or not tensor.size:
            continue
        head = np.ascontiguousarray(tensor.load().reshape(-1)[: _HEAD_BYTES // 2])
        if (head == head[0]).all():
            continue
        key = (tensor.shape, tensor.dtype, head.tobytes())
        for other in seen.get(key, ()):
            if (tensor.place is not None and tensor.place == other.place) or _are_same(tensor, other):
                tied[tensor.name] = other.name
                break
        else:
            seen.setdefault(key, []).append(tensor)
    return tied


def _is_zero(tensor: StoredTensor) -> bool:
    values = tensor.load().reshape(-1)
    return not values[:_HEAD_BYTES].any() and not values.any()


def _are_same(one: StoredTensor, other: StoredTensor) -> bool:
    return bool(np.array_equal(one.load(), other.load()))
