"""Reading the autograd graph: what produced a tensor, which leaves a loss reaches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

Node = Any  # torch.autograd.graph.Node; its attributes differ by operation

MOVES = frozenset(
    [
        "View",
        "UnsafeView",
        "Reshape",
        "ReshapeAlias",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Permute",
        "T",
        "Select",
        "Slice",
        "Clone",
        "ToCopy",
        "Expand",
        "Index",
        "IndexSelect",
        "Narrow",
        "Split",
        "SplitWithSizes",
        "Unbind",
        "Chunk",
        "Gather",
        "MaskedSelect",
        "Alias",
        "Movedim",
        "SwapAxes",
        "Mt",
        "Flatten",
        "Unflatten",
        "AsStrided",
        "Contiguous",
        "Repeat",
        "Flip",
    ]
)
"""Autograd nodes that move values and leave each as it is."""

_SHAPE_ONLY = MOVES | {"Copy", "Cat", "Stack", "Detach", "Clamp", "ClampMin", "ClampMax"}

_NAMES = {
    "Softmax": "softmax",
    "SoftmaxBackwardData": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid",
    "Relu": "relu",
    "Tanh": "tanh",
    "Log": "log",
    "Log1p": "log1p",
    "Softplus": "softplus",
    "Exp": "exp",
    "Hardsigmoid": "hardsigmoid",
    "Hardtanh": "hardtanh",
    "Round": "round",
    "Sign": "sign",
    "Floor": "floor",
    "Ceil": "ceil",
    "Trunc": "trunc",
    "Heaviside": "heaviside",
    "Addmm": "linear",
    "Mm": "linear",
    "Bmm": "matmul",
    "Convolution": "convolution",
}

ZERO_GRADIENT_OPS = frozenset({"round", "sign", "floor", "ceil", "trunc", "heaviside"})


@dataclass(frozen=True)
class Producer:
    """The operation that computed a tensor's values, past reshapes, slices and casts.

    Attributes:
        op: such as ``softmax``; the autograd node's own name for operations without a common one.
        dim: the dimension that a softmax normalised, where it was seen; never negative.
        length: the length of that dimension.
        location: the user's source line that called it, where it was seen.
        module: dotted name of the module in whose forward it ran, where it was seen.
        before: the producer of this operation's own input, one step back.
    """

    op: str
    dim: int | None = None
    length: int | None = None
    location: str | None = None
    module: str | None = None
    before: str | None = None


def op_name(node: Node) -> str:
    """``SoftmaxBackward0`` → ``softmax``; nodes without a common name keep theirs."""
    raw = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
    return _NAMES.get(raw, raw)


def custom_function(node: Node) -> str | None:
    """The name of the ``torch.autograd.Function`` that made a node, unless it is torch's own."""
    kind = type(node)
    if not issubclass(kind, torch.autograd.function.BackwardCFunction):
        return None
    origin = getattr(kind, "_forward_cls", kind)
    return None if origin.__module__.startswith("torch.") else str(origin.__name__)


def producers(tensor: torch.Tensor, seen: Mapping[int, Producer]) -> tuple[Producer, ...]:
    """The operations that produced a tensor: one, or several where it was concatenated.

    Args:
        tensor: any tensor; one without a graph has no producers.
        seen: facts about nodes by ``id``, recorded while the operations ran.
    """
    if tensor.grad_fn is None:
        return ()
    found: dict[Producer, None] = {}
    for node in _value_nodes(tensor.grad_fn):
        known = seen.get(id(node))
        op = op_name(node)
        behind = [
            inner for after, _ in node.next_functions if after is not None for inner in _value_nodes(after)
        ]
        before = op_name(behind[0]) if len(behind) == 1 else None
        if known is not None:
            found[replace(known, op=op, before=before)] = None
        else:
            found[Producer(op, before=before)] = None
    return tuple(found)


def ancestors(roots: Iterable[Node]) -> Iterator[Node]:
    """Every node that the roots' gradients flow to, roots included."""
    stack = [root for root in roots if root is not None]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack += [after for after, _ in node.next_functions if after is not None and after not in seen]


def leaves(roots: Iterable[Node]) -> dict[int, torch.Tensor]:
    """The leaf tensors that the roots' gradients accumulate into, by ``id``."""
    found = {}
    for node in ancestors(roots):
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor):
            found[id(variable)] = variable
    return found


def gradient_edge(tensor: torch.Tensor) -> Node:
    """The node of a tensor: its ``grad_fn``, or the accumulator of a leaf that requires a gradient."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    if tensor._base is not None:  # a view that was made under `no_grad`
        return gradient_edge(tensor._base)
    if tensor.requires_grad:
        return torch.autograd.graph.get_gradient_edge(tensor).node
    return None


def _value_nodes(node: Node, limit: int = 200) -> list[Node]:
    """The nodes behind a chain of operations that move values without changing them."""
    found: list[Node] = []
    stack, seen = [node], {node}
    while stack and len(seen) < limit:
        current = stack.pop()
        raw = type(current).__name__.rstrip("0123456789").removesuffix("Backward")
        inputs = [after for after, _ in current.next_functions if after is not None]
        if raw in _SHAPE_ONLY and inputs:
            fresh = [after for after in inputs if after not in seen]
            seen.update(fresh)
            stack += fresh
        else:
            found.append(current)
    return found
