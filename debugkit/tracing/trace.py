"""Watching one step from outside: a ``torch.overrides`` mode and module hooks record what happened.

No method is replaced. The mode sees every torch function that the step calls; it records calls of loss
functions, the activations that could precede them, the places where a value leaves the autograd graph, and
parameters that are created while the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import tensors
from debugkit.loss.losses import LOSSES, LossCall, bind_loss, loss_call
from debugkit.tracing.cuts import Cut, CutWatch, tensors_in
from debugkit.tracing.entries import Entry, EntryWatch
from debugkit.tracing.graph import Node, Producer, gradient_edge, producers
from debugkit.tracing.layer_watch import LayerWatch
from debugkit.tracing.layers import Layers
from debugkit.tracing.source import is_library_class, user_location

_ACTIVATIONS = frozenset(
    {
        "softmax",
        "log_softmax",
        "sigmoid",
        "relu",
        "relu_",
        "tanh",
        "round",
        "sign",
        "floor",
        "ceil",
        "trunc",
        "logsigmoid",
        "logsumexp",
    }
)

_TRANSPOSES = frozenset({"T", "mT"})


@dataclass(frozen=True)
class DoubleSoftmax:
    """A softmax, log-softmax or log-sum-exp that was applied to probabilities.

    Attributes:
        op: the second operation.
        first: the producer of its input.
        location: the user's source line of the second operation.
        module: dotted name of the module in whose forward it ran.
        node: the result's autograd node.
    """

    op: str
    first: Producer
    location: str | None
    module: str | None
    node: Node = field(repr=False)


class Recorder(TorchFunctionMode):
    """Records one step while active; see :func:`record`."""

    def __init__(self, layers: LayerWatch | None = None) -> None:
        super().__init__()
        self._layers = layers
        self.loss_calls: list[LossCall] = []
        self.differentiated: list[torch.Tensor] = []
        self.double_softmax: list[DoubleSoftmax] = []
        self.created: dict[int, str | None] = {}
        self.module_calls: dict[str, int] = {}
        self.module_shapes: dict[str, tuple[int, ...]] = {}
        self.stack: list[str] = []
        self.module_outputs: dict[str, tuple[Node, ...]] = {}
        self.root_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.root_output: Any = None
        self._cuts = CutWatch()
        self._entries = EntryWatch()
        self._frames: list[tuple[str, bool, bool]] = []
        self._activations: dict[int, Producer] = {}
        self._alive: list[Node] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name in _TRANSPOSES:
                return self._flowing(func, name, args, kwargs)
            if name != "data":
                return func(*args, **kwargs)
        if func in LOSSES:
            return self._loss(func, args, kwargs)
        if self.stack and name.endswith("_"):
            for value in tensors_in(args, kwargs):
                if isinstance(value, torch.nn.Parameter):
                    self.created.setdefault(id(value), user_location())
        if func is torch.Tensor.backward:
            self.differentiated.append(args[0])
        self._entries.see(name, args, kwargs, self.module)
        result = self._flowing(func, name, args, kwargs)
        if name in _ACTIVATIONS:
            self._activation(name, result, args, kwargs)
        self._cuts.see(name, result, args, kwargs, self.module, self._disabled_in_library())
        return result

    def _flowing(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a function under the eyes of the layer watch, where there is one."""
        if self._layers is None:
            return func(*args, **kwargs)
        self._layers.at(self.stack)
        seen = self._layers.before(func, name, args, kwargs)
        result = func(*args, **kwargs)
        self._layers.after(func, name, args, kwargs, result, seen)
        return result

    def enter(self, name: str, module: torch.nn.Module) -> None:
        """A module's forward begins."""
        self.stack.append(name)
        self._frames.append((name, is_library_class(type(module)), torch.is_grad_enabled()))

    def leave(self, name: str, output: Any) -> None:
        """A module's forward ends."""
        if self.stack:
            self.stack.pop()
            self._frames.pop()
        self.module_calls[name] = self.module_calls.get(name, 0) + 1
        if isinstance(output, torch.Tensor):
            self.module_shapes[name] = tuple(output.shape)
        nodes = (gradient_edge(tensor) for _, tensor in tensors(output) if tensor.requires_grad)
        self.module_outputs[name] = (*self.module_outputs.get(name, ()), *nodes)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The places where values left the graph."""
        return self._cuts.cuts()

    @property
    def layers(self) -> Layers:
        """What the step did with its layers, where that was watched."""
        return self._layers.layers() if self._layers is not None else Layers()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The places where data met weights."""
        return self._entries.entries()

    @property
    def module(self) -> str | None:
        """The module whose forward is running."""
        return self.stack[-1] if self.stack else None

    def producers(self, tensor: torch.Tensor) -> tuple[Producer, ...]:
        """The operations that computed a tensor, with what was seen of them."""
        return producers(tensor, self._activations)

    def seen_on(self, nodes: set[Node], ops: frozenset[str]) -> Iterator[Producer]:
        """The recorded activations of some kinds that lie on a graph."""
        for node in self._alive:
            producer = self._activations[id(node)]
            if producer.op in ops and node in nodes:
                yield producer

    def _loss(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        given = bind_loss(func, args, kwargs)
        prediction = given.get("input")
        behind = self.producers(prediction) if isinstance(prediction, torch.Tensor) else ()
        self._cuts.see_loss(given.values())
        if self._layers is not None:
            self._layers.see_loss(prediction)
        result = func(*args, **kwargs)
        call = loss_call(func, given, behind, user_location(outer=True), self.module, result)
        if call is not None:
            self.loss_calls.append(call)
        return result

    def _activation(self, name: str, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not isinstance(result, torch.Tensor) or result.grad_fn is None or not args:
            return
        location = user_location(outer=True)
        dim = length = None
        if name == "logsumexp":
            self._watch_double(name, result, args[0], location)
            return
        if name in ("softmax", "log_softmax"):
            given = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(given, int) and result.ndim:
                dim = given % result.ndim
                length = result.shape[dim]
            self._watch_double(name, result, args[0], location)
        node = next(iter(_behind_cast(result.grad_fn)))
        self._activations[id(node)] = Producer(name.rstrip("_"), dim, length, location, self.module)
        self._alive.append(node)

    def _watch_double(self, name: str, result: torch.Tensor, given: Any, location: str | None) -> None:
        if not isinstance(given, torch.Tensor):
            return
        for first in self.producers(given):
            if first.op == "softmax":
                self.double_softmax.append(DoubleSoftmax(name, first, location, self.module, result.grad_fn))

    def _disabled_in_library(self) -> bool:
        """Whether the module whose forward switched gradients off is a library's."""
        enabled = [library for _, library, grad in self._frames if grad]
        return enabled[-1] if enabled else False


@contextmanager
def record(model: torch.nn.Module, *, layers: bool = False) -> Iterator[Recorder]:
    """Record what the code inside does with the model.

    Args:
        model: the model.
        layers: whether to measure its layers too.
    """
    recorder = Recorder(LayerWatch(model) if layers else None)
    handles = []

    def before(name: str) -> Callable[..., None]:
        def push(module: torch.nn.Module, args: Any) -> None:
            recorder.enter(name, module)

        return push

    def after(name: str) -> Callable[..., None]:
        def pop(module: torch.nn.Module, args: Any, output: Any) -> None:
            recorder.leave(name, output)

        return pop

    def keep_call(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder.root_call = (args, dict(kwargs))

    def keep_output(module: torch.nn.Module, args: Any, output: Any) -> None:
        recorder.root_output = output

    try:
        if not isinstance(model, torch.jit.ScriptModule):
            handles.append(model.register_forward_pre_hook(keep_call, with_kwargs=True))
            handles.append(model.register_forward_hook(keep_output))
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
        with recorder:
            yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _behind_cast(node: Node) -> Iterator[Node]:
    while type(node).__name__.startswith("ToCopy") and node.next_functions:
        node = node.next_functions[0][0]
    yield node
