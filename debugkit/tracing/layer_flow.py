"""How values flow between the layers of a model: which weights lie behind a tensor, and whether linearly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from debugkit.tracing.recording import DENSE, VALUES_KEPT

# fmt: off
EMBEDDINGS = frozenset({"embedding", "embedding_bag"})
RECURRENT = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
)
NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
DROPOUTS = frozenset(
    {
        "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_dropout_",
        "alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_",
    }
)
_SUMS = frozenset({"add", "sub", "rsub", "cat", "concat", "concatenate", "stack", "hstack", "vstack"})
_PRODUCTS = frozenset({"mul", "multiply", "div", "divide", "true_divide"})
_AFFINE = DROPOUTS | _SUMS | frozenset(
    {
        "neg", "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pad", "interpolate", "upsample", "batch_norm",
        "pixel_shuffle", "pixel_unshuffle", "unfold", "fold", "roll", "flip", "cumsum", "repeat",
        "repeat_interleave", "tile", "detach", "squeeze", "unsqueeze",
    }
)
_FLIPS = frozenset({"t", "T", "mT", "transpose", "swapaxes", "swapdims"})
_MOVES = VALUES_KEPT - {
    "clone", "contiguous", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "alias",
    "requires_grad_", "identity",
}
# fmt: on
_MOST_LAYERS = 8
NONLINEAR = -1


@dataclass(frozen=True, slots=True)
class Flow:
    """What lies behind a tensor.

    Attributes:
        depth: how many weighted layers lie behind it with nothing but affine operations between; ``NONLINEAR``
            where something else does.
        layers: keys of the nearest weighted layers behind it.
        source: key of the layer whose units stand along ``axis``.
        axis: the dimension of those units, counted from the front.
        last: the function that gave it.
        parameter: the parameter that it is a plain view of, where no data lie behind it.
        constant: whether only parameters and buffers lie behind it.
        flipped: whether it is the parameter transposed.
    """

    depth: int = 0
    layers: frozenset[str] = frozenset()
    source: str | None = None
    axis: int = 0
    last: str = ""
    parameter: str | None = None
    constant: bool = False
    flipped: bool = False


RAW = Flow()


class FlowWatch:
    """Follows the values of one step.

    Args:
        model: the model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._buffers = {id(buffer) for buffer in model.buffers()}
        self._flows: Any = WeakIdKeyDictionary()

    def of(self, tensor: torch.Tensor) -> Flow:
        """What lies behind a tensor: unknown values count as data, or as non-linear where they have a graph."""
        known: Flow | None = self._flows.get(tensor)
        if known is not None:
            return known
        if isinstance(tensor, torch.nn.Parameter):
            return Flow(constant=True, parameter=self._names.get(id(tensor)))
        if id(tensor) in self._buffers:
            return Flow(constant=True)
        return RAW if tensor.grad_fn is None else Flow(NONLINEAR)

    def layer(self, result: torch.Tensor, depth: int, key: str, axis: int, op: str) -> None:
        """A weighted layer gave a tensor."""
        self._flows[result] = Flow(
            depth=depth, layers=frozenset({key}), source=key, axis=axis % max(1, result.ndim), last=op
        )

    def carry(
        self, name: str, given: list[torch.Tensor], flows: list[Flow], results: Iterable[torch.Tensor]
    ) -> None:
        """Another function gave tensors.

        Args:
            name: the function's name.
            given: the tensors that it took.
            flows: what lay behind them.
            results: the tensors that it gave.
        """
        name = _plain(name)
        data = [flow for flow in flows if not flow.constant]
        for result in results:
            if not data:
                self._flows[result] = self._constant(name, flows)
            elif all(flow.depth == 0 and not flow.layers for flow in data):
                self._flows[result] = RAW
            else:
                layers = frozenset[str]().union(*(flow.layers for flow in data))
                if len(layers) > _MOST_LAYERS:
                    layers = frozenset(sorted(layers)[-_MOST_LAYERS:])
                depth = max(flow.depth for flow in data)
                if any(flow.depth == NONLINEAR for flow in data) or not _is_affine(name, flows):
                    depth = NONLINEAR
                source, axis = _source(name, given, flows, result)
                self._flows[result] = Flow(depth, layers, source, axis, name)

    def _constant(self, name: str, flows: list[Flow]) -> Flow:
        first = flows[0] if flows else RAW
        if not flows:
            return RAW
        if name in VALUES_KEPT:
            return replace(first, flipped=first.flipped != (name in _FLIPS), last=name)
        return Flow(constant=True, last=name)


def is_weighted(name: str, flows: list[Flow]) -> bool:
    """Whether a call mixes data by constant weights."""
    return name in DENSE and name not in EMBEDDINGS and len({flow.constant for flow in flows[:2]}) == 2


def flows_of(watch: FlowWatch, tensors: list[torch.Tensor]) -> list[Flow]:
    """What lies behind each tensor."""
    return [watch.of(tensor) for tensor in tensors]


def _is_affine(name: str, flows: list[Flow]) -> bool:
    if name in _PRODUCTS:
        return sum(not flow.constant for flow in flows) == 1 and not (
            name not in ("mul", "multiply") and flows[0].constant
        )
    return name in _AFFINE or name in VALUES_KEPT


def _source(
    name: str, given: list[torch.Tensor], flows: list[Flow], result: torch.Tensor
) -> tuple[str | None, int]:
    """The layer whose units a result holds along one dimension, where a function leaves them in place."""
    if name in _MOVES or name in DENSE:
        return None, 0
    for tensor, flow in zip(given, flows, strict=True):
        if flow.source is None or tensor.ndim != result.ndim or flow.axis >= result.ndim:
            continue
        if tensor.shape[flow.axis] == result.shape[flow.axis]:
            return flow.source, flow.axis
    return None, 0


def _plain(name: str) -> str:
    """``__iadd__`` and ``add_`` as ``add``."""
    bare = name.strip("_")
    for prefix in ("r", "i"):
        if name.startswith(f"__{prefix}") and bare[1:] in ("add", "sub", "mul", "truediv", "matmul", "div"):
            bare = bare[1:]
    return {"truediv": "div", "getitem": "__getitem__"}.get(bare, bare)


def tensor_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors among the arguments of a call, two levels down in lists and tuples."""
    found: list[torch.Tensor] = []
    stack: list[Any] = [*args, *kwargs.values()][::-1]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)) and len(value) <= 256:
            stack += value[::-1]
    return found
