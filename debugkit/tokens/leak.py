"""Where padding first reaches the content of a row: the module whose inputs agree and whose outputs do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import tensors
from debugkit.tokens.row_call import RowCall, gap, span_of
from debugkit.tracing.source import is_library_class

_FEATURES = 32
_LOCAL = ("conv", "fft", "unfold", "stft", "avg_pool", "max_pool", "lp_pool")


@dataclass(frozen=True)
class Leak:
    """Where padding comes in.

    Attributes:
        module: dotted name; empty for the model itself.
        kind: the name of its class.
        after: the module that ran last before with the same outputs; empty without one.
        own: whether the code is the user's, or a part of torch that the user's code calls.
        local: whether neighbours mix there, or before it, by design: convolutions, Fourier transforms.
        recurrent: whether it is a recurrent layer.
    """

    module: str
    kind: str
    after: str
    own: bool
    local: bool
    recurrent: bool


@dataclass
class _Call:
    name: str
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    ops: frozenset[str]


class _Ops(TorchFunctionMode):
    """The names of the functions that each running module calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[set[str]] = [set()]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.stack[-1].add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def find_leak(model: torch.nn.Module, padded: RowCall, alone: RowCall, tolerance: float) -> Leak | None:
    """Run a row with and without padding and compare what its modules take and give.

    Returns:
        The first module, in the order in which they end, that makes the difference; ``None`` where the two runs
        call different modules.
    """
    first, second = _record(model, padded), _record(model, alone)
    if [call.name for call in first] != [call.name for call in second]:
        return None
    length, span, after, local = padded.length, padded.span, "", False
    states: dict[str, tuple[torch.Tensor, str]] = {}
    for mine, other in zip(first, second, strict=True):
        local |= any(op.startswith(_LOCAL) for op in mine.ops)
        if _differ(mine.inputs, other.inputs, length, span, tolerance):
            for name, (state, before) in states.items():
                if any(bool(torch.isin(given, state).all()) for given in mine.inputs):
                    return _leak(model, name, before, local)
            continue
        if not _differ(mine.outputs, other.outputs, length, span, tolerance):
            after = mine.name or after
            continue
        recurrent = isinstance(model.get_submodule(mine.name), torch.nn.RNNBase)
        if recurrent and not _differ(mine.outputs[:1], other.outputs[:1], length, span, tolerance):
            # the outputs agree, and only the last state is behind the padding: does something use it?
            states[mine.name] = (torch.cat([t.flatten() for t in mine.outputs[1:]]), after)
            after = mine.name
            continue
        return _leak(model, mine.name, after, local)
    return None


def _leak(model: torch.nn.Module, name: str, after: str, local: bool) -> Leak:
    module = model.get_submodule(name)
    return Leak(
        module=name,
        kind=type(module).__name__,
        after=after,
        own=_is_own(model, name),
        local=local,
        recurrent=isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase),
    )


def _record(model: torch.nn.Module, call: RowCall) -> list[_Call]:
    with _recording(model) as calls:
        call.on(model)
    return calls


@contextmanager
def _recording(model: torch.nn.Module) -> Iterator[list[_Call]]:
    calls: list[_Call] = []
    hooks = []
    ops = _Ops()

    def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        taken.append(_values([args, kwargs]))
        ops.stack.append(set())

    def after(name: str) -> Any:
        def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
            calls.append(_Call(name, taken.pop(), _values(output), frozenset(ops.stack.pop())))

        return keep

    taken: list[list[torch.Tensor]] = []
    try:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.append(module.register_forward_hook(after(name)))
        with ops:
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _values(value: Any) -> list[torch.Tensor]:
    """Floating-point tensors, of many features the first, moved out of the way of what comes later."""
    return [
        (t.detach()[..., :_FEATURES] if t.ndim > 2 and t.shape[-1] > 8 * _FEATURES else t.detach())
        .cpu()
        .clone()
        for _, t in tensors(value)
        if t.is_floating_point() and t.ndim
    ]


def _differ(
    mine: list[torch.Tensor], other: list[torch.Tensor], length: int, span: slice, tolerance: float
) -> bool:
    if len(mine) != len(other):
        return True
    return any(_apart(a, b, length, span, tolerance) for a, b in zip(mine, other, strict=True))


def _apart(mine: torch.Tensor, other: torch.Tensor, length: int, span: slice, tolerance: float) -> bool:
    if mine.shape != other.shape:
        mine = span_of(mine, length, span)
    if mine.shape != other.shape:
        if mine.ndim != other.ndim:
            return True
        index = [
            slice(min(a, b)) if span.start == 0 else slice(-min(a, b), None)
            for a, b in zip(mine.shape, other.shape, strict=True)
        ]
        mine, other = mine[tuple(index)], other[tuple(index)]
    found = gap(mine, other, length, span)
    return found is not None and found > tolerance


def _is_own(model: torch.nn.Module, name: str) -> bool:
    """Whether a module, or what calls it, is the user's: no library but torch in between."""
    parts = name.split(".") if name else []
    for depth in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        if "forward" in vars(module) or not is_library_class(type(module)):
            return True
        if not type(module).__module__.startswith("torch."):
            return False
    return all(type(module).__module__.startswith("torch.") for module in model.modules())
