"""The traced training step: one forward and backward of the user's own step, observed from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from debugkit.data.batch import tensors
from debugkit.errors import Broken, one_line
from debugkit.evidence import Cost
from debugkit.loss.losses import LossCall
from debugkit.probes.batches import Batches
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.cuts import Cut
from debugkit.tracing.entries import Entry
from debugkit.tracing.graph import ZERO_GRADIENT_OPS, Node, Producer, ancestors, custom_function, leaves
from debugkit.tracing.layers import Layers
from debugkit.tracing.program import Program
from debugkit.tracing.source import is_library_file, shorten
from debugkit.tracing.trace import DoubleSoftmax, record
from debugkit.weights.twins import Twins, twin_units


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient after one backward pass.

    Attributes:
        norm: its 2-norm; ``None`` where there is no gradient.
        largest: its largest absolute value; ``None`` where there is no gradient.
    """

    norm: float | None
    largest: float | None

    @property
    def missing(self) -> bool:
        """Whether the backward pass left the gradient at ``None``."""
        return self.norm is None

    @property
    def alive(self) -> bool:
        """Whether some value is not zero."""
        return self.largest is not None and self.largest != 0.0

    @property
    def zero(self) -> bool:
        """Whether every value is exactly zero."""
        return self.largest == 0.0


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """One forward and backward of the user's step on the first batch.

    Attributes:
        loss: the loss (its mean where it is no scalar).
        loss_shape: the shape of the loss as the step returned it.
        has_graph: whether the loss can be differentiated.
        own_backward: whether the step ran ``backward`` itself.
        loss_calls: calls of known loss functions, in order.
        double_softmax: softmaxes of probabilities on the way to the loss.
        gradients: per trainable parameter, by dotted name.
        reached: names of the trainable parameters in the loss's graph.
        custom_functions: names of the ``torch.autograd.Function`` classes in the graph that are not torch's.
        strangers: parameters in the graph that the model does not register, with their place.
        cuts: places where values left the graph.
        flat_calls: operations on the loss's path whose gradient is zero everywhere (rounding, sign).
        module_calls: how often each module ran, by dotted name.
        module_shapes: the shape of each module's last output, where it is a tensor.
        moved_buffers: buffers that the forward pass changed.
        set_modes: whether the step itself changed training flags.
        training_after: each module's training flag after the step.
        module_outputs: the autograd nodes of each module's outputs.
        own_loss: whether the loss is one of the model's own outputs (up to scaling).
        root_call: ``(args, kwargs)`` of the model's own last call, where the step called the model as a whole.
        output_marks: see :func:`marks`, of that call's outputs.
        entries: the places where data met weights, in order.
        layers: the layers of the model, with the sizes of what went in and out.
        twins: per weight, how many of its units are identical to another, in values and in gradients.
    """

    cost: ClassVar[Cost] = "backward"
    loss: float
    loss_shape: tuple[int, ...]
    has_graph: bool
    own_backward: bool
    loss_calls: tuple[LossCall, ...]
    double_softmax: tuple[DoubleSoftmax, ...]
    gradients: Mapping[str, Gradient]
    reached: frozenset[str]
    custom_functions: tuple[str, ...]
    strangers: tuple[Stranger, ...]
    cuts: tuple[Cut, ...] = field(repr=False)
    flat_calls: tuple[Producer, ...]
    module_calls: Mapping[str, int] = field(repr=False)
    module_shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    moved_buffers: frozenset[str]
    set_modes: bool
    training_after: Mapping[str, bool] = field(repr=False)
    module_outputs: Mapping[str, tuple[Node, ...]] = field(repr=False)
    own_loss: bool
    root_call: tuple[tuple[Any, ...], dict[str, Any]] | None = field(repr=False)
    output_marks: tuple[float, ...] = field(repr=False)
    entries: tuple[Entry, ...] = field(repr=False, default=())
    layers: Layers = field(repr=False, default_factory=Layers)
    twins: Mapping[str, Twins] = field(repr=False, default_factory=dict)

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches) -> TrainingStep:
        """Run the step once, in train mode where the model as a whole is in eval mode.

        Raises:
            Broken: the user's step raised.
        """
        in_eval = not sandbox.training[""]
        with sandbox.probe():
            sets_modes = in_eval and target.training_step is not None and _sets_modes(target, batches.first)
        with sandbox.probe():
            if in_eval:
                target.model.train()
            step = _trace(target, batches.first)
        return replace(step, set_modes=True) if sets_modes else step

    @property
    def is_cut_off(self) -> bool:
        """Whether the loss leads to no trainable parameter at all."""
        found = any(not gradient.missing for gradient in self.gradients.values())
        return not self.has_graph or not (found or self.reached or self.strangers)

    def left_out_by(self, model: torch.nn.Module, name: str) -> str | None:
        """The innermost module that runs and whose output does not depend on a parameter.

        Returns:
            The module's dotted name (the root is ``""``), or ``None`` when the model's output depends on the
            parameter, so that only the step leaves it out.
        """
        parameter = model.get_parameter(name)
        path = name.split(".")[:-1]
        for depth in range(len(path), -1, -1):
            module = ".".join(path[:depth])
            if self.module_calls.get(module) and id(parameter) not in leaves(self.module_outputs[module]):
                return module
        return None


@dataclass(frozen=True)
class Stranger:
    """A parameter that the loss trains but the model does not register.

    Attributes:
        shape: its shape.
        place: dotted path of the attribute that holds it, such as ``model.layers[0].weight``.
        created: source line that created it inside a forward pass, where that was seen.
    """

    shape: tuple[int, ...]
    place: str | None
    created: str | None


def run_step(target: Target, batch: Any) -> Any:
    """The user's step on a batch, with its errors as one sentence.

    Raises:
        Broken: the step raised; the message says where.
    """
    try:
        return Program(target).run(batch)
    except Broken:
        raise
    except (Exception, SystemExit) as error:
        raise Broken(f"the training step raised{_place(error)}: {one_line(error)}") from error


def marks(outputs: Any) -> tuple[float, ...]:
    """Mean and standard deviation of each floating output: equal for equal outputs, cheap to keep."""
    found: list[float] = []
    for _, tensor in tensors(outputs):
        if tensor.is_floating_point() and tensor.numel():
            values = tensor.detach().double()
            found += [float(values.mean()), float(values.std(correction=0))]
    return tuple(found)


def gradients_of(model: torch.nn.Module) -> dict[str, Gradient]:
    """The gradients of the trainable parameters as they stand."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        grad = parameter.grad
        if grad is None or not grad.numel():
            found[name] = Gradient(None, None) if grad is None else Gradient(0.0, None)
            continue
        values = grad.detach()
        values = values.coalesce().values() if values.is_sparse else values
        found[name] = Gradient(
            float(values.float().norm()), float(values.abs().max()) if values.numel() else 0.0
        )
    return found


def _sets_modes(target: Target, batch: Any) -> bool:
    """Whether the step, run from the modes as they are, changes training flags."""
    before = [module.training for module in target.model.modules()]
    run_step(target, batch)
    return before != [module.training for module in target.model.modules()]


def _trace(target: Target, batch: Any) -> TrainingStep:
    model = target.model
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with record(model, layers=True) as recorder:
        try:
            outcome = run_step(target, batch)
        except Broken as error:
            if recorder.module:
                raise Broken(f"{error} (in `{recorder.module}`)") from error
            raise
    loss = outcome.loss
    output_marks = marks(recorder.root_output)
    after = {name: module.training for name, module in model.named_modules()}
    own_backward = any(parameter.grad is not None for parameter in model.parameters())
    roots = [root.grad_fn for root in (loss, *recorder.differentiated) if root.grad_fn is not None]
    nodes: set[Node] = set(ancestors(roots))
    if loss.requires_grad and not own_backward:
        backward(loss)
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    found = leaves(roots)
    gradients = gradients_of(model)
    layers = recorder.layers
    reached = {trainable[key] for key in found if key in trainable}
    return TrainingStep(
        loss=float(loss.detach().float().mean()) if loss.numel() else float("nan"),
        loss_shape=tuple(loss.shape),
        has_graph=loss.requires_grad or own_backward,
        own_backward=own_backward,
        loss_calls=tuple(replace(call, connected=call.node in nodes) for call in recorder.loss_calls),
        double_softmax=tuple(pair for pair in recorder.double_softmax if pair.node in nodes),
        gradients=gradients,
        reached=frozenset(reached),
        custom_functions=tuple(sorted({name for node in nodes if (name := custom_function(node))})),
        strangers=tuple(
            sorted(_strangers(target, found.values(), recorder.created), key=lambda s: s.place or "")
        ),
        cuts=recorder.cuts,
        flat_calls=tuple(recorder.seen_on(nodes, ZERO_GRADIENT_OPS)),
        module_calls=recorder.module_calls,
        module_shapes=recorder.module_shapes,
        moved_buffers=frozenset(
            name
            for name, buffer in model.named_buffers()
            if name in before and not _same(buffer, before[name])
        ),
        set_modes=any(after.get(name) != flag for name, flag in modes.items()),
        training_after=after,
        module_outputs=recorder.module_outputs,
        own_loss=_is_own_loss(loss, recorder.root_output),
        root_call=recorder.root_call,
        output_marks=output_marks,
        entries=recorder.entries,
        layers=layers,
        twins=twin_units(model, layers),
    )


def backward(loss: torch.Tensor) -> None:
    """Backpropagate a loss (its mean where it is no scalar).

    Raises:
        Broken: the backward pass raised.
    """
    try:
        (loss if loss.numel() == 1 else loss.mean()).backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise Broken(f"the backward pass raised: {one_line(error)}") from error


def _is_own_loss(loss: torch.Tensor, outputs: Any, hops: int = 3) -> bool:
    scalars = {
        tensor.grad_fn for _, tensor in tensors(outputs) if tensor.ndim == 0 and tensor.grad_fn is not None
    }
    layer = {loss.grad_fn}
    for _ in range(hops):
        if layer & scalars:
            return True
        layer = {after for node in layer if node is not None for after, _ in node.next_functions}
    return False


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _strangers(
    target: Target, found: Iterable[torch.Tensor], created: Mapping[int, str | None]
) -> Iterable[Stranger]:
    known = {id(p) for p in target.model.parameters()}
    if isinstance(target.loss_fn, torch.nn.Module):
        known |= {id(p) for p in target.loss_fn.parameters()}
    for group in getattr(target.optimizer, "param_groups", ()):
        known |= {id(p) for p in group["params"]}
    for leaf in found:
        if id(leaf) in known or not isinstance(leaf, torch.nn.Parameter):
            continue
        place = _attribute_path(target.model, leaf)
        if place is not None or id(leaf) in created:
            yield Stranger(tuple(leaf.shape), place, created.get(id(leaf)))


def _attribute_path(model: torch.nn.Module, leaf: torch.Tensor) -> str | None:
    """The path of an attribute that hides a parameter from ``parameters()``: in a list, dict or plain object."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_modules", "_buffers") or attribute.endswith("_hooks"):
                continue
            path = _path_inside(value, f"{name}.{attribute}" if name else attribute, leaf, depth=3)
            if path is not None:
                return path
    return None


def _path_inside(value: Any, path: str, leaf: torch.Tensor, depth: int) -> str | None:
    if value is leaf:
        return path
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, torch.nn.Module):
        return next((f"{path}.{name}" for name, p in value.named_parameters() if p is leaf), None)
    if isinstance(value, (list, tuple)) and len(value) <= 10_000:
        children = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, dict) and len(value) <= 10_000:
        children = ((f"{path}[{key!r}]", item) for key, item in value.items())
    elif (
        depth
        and hasattr(value, "__dict__")
        and not isinstance(value, (type, torch.Tensor))
        and not callable(value)
    ):
        children = ((f"{path}.{key}", item) for key, item in vars(value).items())
    if not depth:
        return None
    return next(
        (hit for p, item in children if (hit := _path_inside(item, p, leaf, depth - 1)) is not None), None
    )


def _place(error: BaseException) -> str:
    """`` at train.py:41`` for the innermost frame of the user's own code in a traceback."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not is_library_file(filename):
            place = f" at {shorten(filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
