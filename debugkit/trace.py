"""Watching one step from outside: a ``torch.overrides`` mode and module hooks record what happened.

No method is replaced. The mode sees every torch function that the step calls; it records calls of loss
functions, the activations that could precede them, the places where a value leaves the autograd graph, and
parameters that are created while the model runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.batch import tensors
from debugkit.graph import Node, Producer, gradient_edge, producers
from debugkit.source import is_library_call, is_library_class, user_location

Expects = Literal["logits", "binary logits", "log-probabilities", "probabilities", "values"]

LOSSES: dict[Callable[..., Any], Expects] = {
    F.cross_entropy: "logits",
    F.nll_loss: "log-probabilities",
    F.binary_cross_entropy: "probabilities",
    F.binary_cross_entropy_with_logits: "binary logits",
    F.kl_div: "log-probabilities",
    F.ctc_loss: "log-probabilities",
    F.multilabel_soft_margin_loss: "binary logits",
    F.soft_margin_loss: "values",
    F.mse_loss: "values",
    F.l1_loss: "values",
    F.smooth_l1_loss: "values",
    F.huber_loss: "values",
    F.poisson_nll_loss: "values",
    F.gaussian_nll_loss: "values",
    F.multi_margin_loss: "values",
    F.multilabel_margin_loss: "values",
    F.hinge_embedding_loss: "values",
}

_RENAMED = {"nll_loss_nd": "nll_loss", "log_probs": "input", "targets": "target"}
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
    }
)
_LEAVES_GRAPH = frozenset({"item", "tolist", "numpy", "__array__", "__float__", "__int__"})
_SAMPLED_ROWS = 512
_MOST_EVENTS = 4000


@dataclass(frozen=True)
class Facts:
    """What a tensor given to a loss looks like.

    Attributes:
        shape: its full shape.
        dtype: such as ``float32``.
        minimum: smallest value in the sampled rows.
        maximum: largest value in the sampled rows.
        row_sums: smallest and largest sum over the classes.
        row_logsumexps: smallest and largest log-sum-exp over the classes.
        rows: how many rows were sampled.
        normalised_dims: dimensions over which all values, taken as probabilities, sum to 1.
        log_normalised_dims: the same for values taken as log-probabilities.
    """

    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    row_sums: tuple[float, float]
    row_logsumexps: tuple[float, float]
    rows: int
    normalised_dims: tuple[int, ...]
    log_normalised_dims: tuple[int, ...]


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function during the step.

    Attributes:
        name: such as ``cross_entropy``.
        expects: what its input must be.
        input: facts of the predictions.
        target: facts of the targets, where they are a tensor.
        class_dim: the dimension of the classes in the input.
        producers: the operations that computed the input.
        reduction: ``mean``, ``sum``, ``none`` or ``batchmean``.
        ignore_index: targets that do not count.
        label_smoothing: as given.
        weight: shape of the class weights, where given.
        log_target: for ``kl_div``: whether the target holds log-probabilities.
        value: the result, for a scalar result.
        location: the user's source line.
        module: dotted name of the module in whose forward it ran; ``None`` outside the model.
        node: the result's autograd node.
        connected: whether the step's loss depends on the result.
    """

    name: str
    expects: Expects
    input: Facts
    target: Facts | None
    class_dim: int
    producers: tuple[Producer, ...]
    reduction: str
    ignore_index: int | None
    label_smoothing: float
    weight: tuple[int, ...] | None
    log_target: bool
    value: float | None
    location: str | None
    module: str | None
    node: Node = field(repr=False)
    connected: bool = False


@dataclass(frozen=True)
class Cut:
    """A place where a value that carried a gradient was used without one.

    Attributes:
        op: the function, such as ``detach``, ``argmax`` or ``linear`` (under ``no_grad``).
        grad_enabled: whether gradients were enabled there.
        location: the user's source line.
        module: dotted name of the module in whose forward it happened.
        checkpointed: whether it happened inside reentrant activation checkpointing.
        in_library: whether an installed package made the cut, and not the user's own code.
        nodes: the autograd nodes of the values that lost their gradient.
    """

    op: str
    grad_enabled: bool
    location: str | None
    module: str | None
    checkpointed: bool
    in_library: bool
    nodes: tuple[Node, ...] = field(repr=False)


@dataclass(frozen=True)
class DoubleSoftmax:
    """A log-softmax or softmax that was applied to probabilities.

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

    def __init__(self) -> None:
        super().__init__()
        self.loss_calls: list[LossCall] = []
        self.cuts: list[Cut] = []
        self.double_softmax: list[DoubleSoftmax] = []
        self.created: dict[int, str | None] = {}
        self.module_calls: dict[str, int] = {}
        self.module_shapes: dict[str, tuple[int, ...]] = {}
        self.stack: list[str] = []
        self.module_outputs: dict[str, tuple[Node, ...]] = {}
        self.root_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.root_output: Any = None
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
            if name != "data":
                return func(*args, **kwargs)
        if func in LOSSES:
            return self._loss(func, args, kwargs)
        if self.stack and name.endswith("_"):
            for value in _tensors_in(args, kwargs):
                if isinstance(value, torch.nn.Parameter):
                    self.created.setdefault(id(value), user_location())
        result = func(*args, **kwargs)
        if name in _ACTIVATIONS:
            self._activation(name, result, args, kwargs)
        self._watch_cut(name, result, args, kwargs)
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
        prediction, target = given.get("input"), given.get("target")
        if not isinstance(prediction, torch.Tensor) or not prediction.numel():
            return func(*args, **kwargs)
        name = _RENAMED.get(func.__name__, func.__name__)
        class_dim = (
            1 if name in ("cross_entropy", "nll_loss") and prediction.ndim > 1 else prediction.ndim - 1
        )
        with torch.no_grad():
            ignored = given.get("ignore_index")
            facts = facts_of(prediction, class_dim)
            target_facts = _target_facts(target, class_dim)
        behind = self.producers(prediction)
        result = func(*args, **kwargs)
        scalar = isinstance(result, torch.Tensor) and result.numel() == 1
        weight = given.get("weight")
        self.loss_calls.append(
            LossCall(
                name=name,
                expects=LOSSES[func],
                input=facts,
                target=target_facts,
                class_dim=class_dim,
                producers=behind,
                reduction=str(given.get("reduction", "mean")),
                ignore_index=ignored if isinstance(ignored, int) else None,
                label_smoothing=float(given.get("label_smoothing") or 0.0),
                weight=tuple(weight.shape) if isinstance(weight, torch.Tensor) else None,
                log_target=bool(given.get("log_target", False)),
                value=float(result.detach()) if scalar else None,
                location=user_location(outer=True),
                module=self.module,
                node=result.grad_fn if isinstance(result, torch.Tensor) else None,
            )
        )
        return result

    def _activation(self, name: str, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not isinstance(result, torch.Tensor) or result.grad_fn is None or not args:
            return
        location = user_location(outer=True)
        dim = length = None
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

    def _watch_cut(self, name: str, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if isinstance(result, torch.Tensor):
            if result.requires_grad:
                return
        elif name not in _LEAVES_GRAPH:
            return
        carriers = [value for value in _tensors_in(args, kwargs) if value.requires_grad]
        if not carriers or len(self.cuts) >= _MOST_EVENTS:
            return
        nodes = tuple(gradient_edge(value) for value in carriers)
        self.cuts.append(
            Cut(
                op=name,
                grad_enabled=torch.is_grad_enabled(),
                location=user_location(outer=True),
                module=self.module,
                checkpointed=_in_reentrant_checkpoint(),
                in_library=is_library_call() if torch.is_grad_enabled() else self._disabled_in_library(),
                nodes=tuple(node for node in nodes if node is not None),
            )
        )

    def _disabled_in_library(self) -> bool:
        """Whether the module whose forward switched gradients off is a library's."""
        enabled = [library for _, library, grad in self._frames if grad]
        return enabled[-1] if enabled else False


@contextmanager
def record(model: torch.nn.Module) -> Iterator[Recorder]:
    """Record what the code inside does with the model."""
    recorder = Recorder()
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


def bind_loss(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a loss call by name, with ``input`` and ``target`` for every loss."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return {_RENAMED.get(key, key): value for key, value in bound.arguments.items()}


def facts_of(tensor: torch.Tensor, class_dim: int) -> Facts:
    """Summarise a tensor: all of it where small, evenly spaced rows of it where large."""
    shape = tuple(tensor.shape)
    dims: tuple[int, ...] = ()
    log_dims: tuple[int, ...] = ()
    floating = tensor.is_floating_point()
    if floating and 1 <= tensor.ndim <= 4 and tensor.numel() <= 2**21:
        full = tensor.detach().float()
        dims = tuple(d for d in range(tensor.ndim) if shape[d] > 1 and _all_near_one(full, d))
        if bool((full <= 0).all()):
            log_dims = tuple(d for d in range(tensor.ndim) if shape[d] > 1 and _all_near_one(full.exp(), d))
    rows = tensor.detach()
    if tensor.ndim > 1:
        rows = rows.movedim(class_dim, -1).reshape(-1, shape[class_dim])
    else:
        rows = rows.reshape(-1, 1)
    if len(rows) > _SAMPLED_ROWS:
        picked = torch.linspace(0, len(rows) - 1, _SAMPLED_ROWS, device=rows.device).long()
        rows = rows[picked]
    rows = rows.float()
    sums, lses = rows.sum(-1), rows.logsumexp(-1)
    return Facts(
        shape=shape,
        dtype=str(tensor.dtype).removeprefix("torch."),
        minimum=float(rows.min()),
        maximum=float(rows.max()),
        row_sums=(float(sums.min()), float(sums.max())),
        row_logsumexps=(float(lses.min()), float(lses.max())),
        rows=len(rows),
        normalised_dims=dims,
        log_normalised_dims=log_dims,
    )


def _all_near_one(values: torch.Tensor, dim: int) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(dim) - 1).abs() < 1e-3).all())


def _target_facts(value: Any, class_dim: int) -> Facts | None:
    if not isinstance(value, torch.Tensor) or not value.numel() or not value.ndim or value.is_complex():
        return None
    return facts_of(value, min(class_dim, value.ndim - 1))


def _behind_cast(node: Node) -> Iterator[Node]:
    while type(node).__name__.startswith("ToCopy") and node.next_functions:
        node = node.next_functions[0][0]
    yield node


def _tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor))


def _in_reentrant_checkpoint() -> bool:
    if torch.is_grad_enabled():
        return False
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if (
            code.co_name == "forward"
            and code.co_filename.endswith("checkpoint.py")
            and "torch" in code.co_filename
        ):
            return True
        frame = frame.f_back
    return False
