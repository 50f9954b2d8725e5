"""Passes over the same rows in eval mode, some of them changed, that differ by nothing but the changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import fresh, tensors
from debugkit.errors import Broken, one_line
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.mixing import Leaves
from debugkit.tracing.program import Program
from debugkit.tracing.root_call import RootCall

T = TypeVar("T")
Ask = Callable[[Any, list[torch.Tensor]], T]

_LOW = (torch.float16, torch.bfloat16)
_MOST_COPIED = 2**25


class _Plain(TorchFunctionMode):
    """Changes nothing, but keeps torch from its fused inference paths, which training does not take."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class SameRows:
    """Runs a model's call in eval mode, each time from the same state and the same random numbers.

    Trainable parameters that are zero throughout are nudged, as the first optimizer step would.

    Args:
        target: the program.
        sandbox: what each pass runs in.
    """

    def __init__(self, target: Target, sandbox: Sandbox) -> None:
        self._target, self._sandbox = target, sandbox
        self._blank = [
            p
            for p in target.model.parameters()
            if p.requires_grad
            and p.numel()
            and p.is_floating_point()
            and not p.is_meta
            and not bool(p.detach().any())
        ]
        sandbox.protect(self._blank)

    @property
    def nudged(self) -> int:
        """How many parameters are nudged."""
        return len(self._blank)

    @property
    def low(self) -> bool:
        """Whether the model computes in half precision."""
        kinds = {p.dtype for p in self._target.model.parameters() if p.is_floating_point()}
        return self._target.autocast_dtype in _LOW or any(kind in _LOW for kind in kinds)

    @property
    def keeps_statistics(self) -> bool:
        """Whether some layer normalises by running statistics in eval mode."""
        return any(True for _ in self._statistics())

    def _statistics(self) -> Iterator[torch.nn.Module]:
        modules = self._target.model.modules()
        return (m for m in modules if isinstance(getattr(m, "running_mean", None), torch.Tensor))

    def run(
        self,
        call: RootCall,
        watch: AbstractContextManager[Any] | None = None,
        *,
        batch_statistics: bool = False,
        nudge: bool = True,
    ) -> Any:
        """The outputs of one call, without a graph.

        Args:
            call: the call.
            watch: active while the model runs.
            nudge: move parameters away from zero.
            batch_statistics: normalise by the statistics of these rows, where running ones are kept.

        Raises:
            Broken: the model raised.
        """
        with self._ready(nudge) as model:
            for module in self._statistics() if batch_statistics else ():
                module.train()
            return _outputs(model, self._fresh(call), watch, False, Program(self._target))

    def differentiate(self, call: RootCall, rows: int, ask: Ask[T]) -> T | None:
        """What gradients tell about one call.

        Args:
            call: the call.
            rows: how many rows it has.
            ask: is given the outputs with their graph, and what the graph starts from: every floating-point input and
                looked-up vector with so many rows.

        Returns:
            ``None`` where the model or some operation does not go with gradients.
        """
        with self._ready() as model:
            given, leaves = self._fresh(call), Leaves(rows)
            floats = {path: t for path, t in given.inputs(rows).items() if t.is_floating_point()}
            starts = {path: t.detach().clone().requires_grad_() for path, t in floats.items()}
            try:
                outputs = _outputs(model, given.with_tensors(starts), leaves, True, Program(self._target))
                return ask(outputs, [*starts.values(), *leaves.found])
            except (Broken, RuntimeError):  # some operations have no backward pass
                return None

    @contextmanager
    def _ready(self, nudge: bool = True) -> Iterator[torch.nn.Module]:
        with self._sandbox.probe():
            self._target.model.eval()
            with torch.no_grad():
                for parameter in self._blank if nudge else ():
                    parameter.normal_(0.0, 0.02)
            yield self._target.model

    def run_double(self, call: RootCall, watch: AbstractContextManager[Any] | None = None) -> Any:
        """The outputs of one call by a copy of the model in double precision.

        Returns:
            ``None`` for a model that is large, or can't be copied or run so.
        """
        model = self._target.model
        if sum(p.numel() for p in model.parameters()) > _MOST_COPIED:
            return None
        with self._sandbox.probe():
            try:
                twin = copy.deepcopy(model).double().eval()
                with torch.no_grad():
                    for parameter, own in zip(twin.parameters(), model.parameters(), strict=True):
                        if any(own is blank for blank in self._blank):
                            parameter.normal_(0.0, 0.02)
                given = self._fresh(call).mapped(lambda t: t.double() if t.is_floating_point() else t)
                return _outputs(twin, given, watch, False, None)
            except Exception:  # a model of one's own may refuse to be copied, or other precisions, in any way
                return None

    def _fresh(self, call: RootCall) -> RootCall:
        device = self._target.device
        return RootCall(fresh(call.args, device), fresh(dict(call.kwargs), device), call.names)


def all_floats(outputs: Any) -> list[torch.Tensor]:
    """Every floating-point output."""
    return [t.detach() for _, t in tensors(outputs) if t.is_floating_point() and not t.is_sparse]


def same_bits(one: Any, other: Any) -> bool:
    """Whether all floating-point outputs are exactly the same."""
    first, second = all_floats(one), all_floats(other)
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(first, second, strict=True)
    )


def with_rows(call: RootCall, changes: Sequence[Mapping[str, torch.Tensor]]) -> RootCall:
    """The call with other values in some rows.

    Args:
        call: the call.
        changes: by row, what to put at each path, as ``[1, ...]``.
    """
    found: dict[str, torch.Tensor] = {}
    for path in dict.fromkeys(path for change in changes for path in change):
        tensor = call.tensors[path].detach()
        parts = [change.get(path, tensor[row : row + 1]).to(tensor) for row, change in enumerate(changes)]
        found[path] = torch.cat([*parts, tensor[len(parts) :]])
    return call.with_tensors(found)


def _outputs(
    model: torch.nn.Module,
    call: RootCall,
    watch: AbstractContextManager[Any] | None,
    grad: bool,
    program: Program | None,
) -> Any:
    with torch.set_grad_enabled(grad), _precision(program), _Plain(), watch or nullcontext():
        try:
            return model(*call.args, **call.kwargs)
        except Exception as error:
            raise Broken(f"the model raised in eval mode: {one_line(error)}") from error


@contextmanager
def _precision(program: Program | None) -> Iterator[None]:
    with nullcontext() if program is None else program.precision():
        yield
