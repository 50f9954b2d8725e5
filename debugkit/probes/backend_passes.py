"""The model's outputs and gradients by another way of computing them: compiled, or with another attention."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from debugkit.data.batch import fresh, size, sliceable, take, tensors
from debugkit.errors import Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.target import Target
from debugkit.tracing.attention_backend import attention_backend, takes_backends
from debugkit.tracing.program import Program

_ATTENTION = "-attention"
_MOST_ROWS = 2


@dataclass(frozen=True)
class OtherBackend:
    """What the model is to be compared with, where that was asked for.

    Attributes:
        name: a backend of ``torch.compile`` (``inductor``, ``aot_eager``, ``eager``, one that was registered), or
            ``eager-attention``, ``sdpa-attention`` and so on for a transformers model.
    """

    cost: ClassVar[Cost] = "training"
    name: str

    @staticmethod
    def collect(
        *,
        name: Annotated[
            str,
            Field(
                description="a backend of `torch.compile`, such as `inductor` or `aot_eager`, or `eager-attention`; "
                "compiling takes tens of seconds"
            ),
        ] = "",
    ) -> OtherBackend:
        """Read the option.

        Raises:
            Unavailable: nothing was asked for.
        """
        if not name:
            raise Unavailable(
                "compiling takes tens of seconds; ask for it with `--set other-backend.name=inductor` (or `aot_eager`, "
                "`eager-attention`)"
            )
        return OtherBackend(name)


@dataclass(frozen=True)
class Difference:
    """How far something is from what the model computes as it is.

    Attributes:
        name: path of the output, or the parameter's dotted name.
        error: norm of the difference over the norm of the original, around its mean for outputs.
    """

    name: str
    error: float


@dataclass(frozen=True)
class BackendPasses:
    """Outputs and gradients in eval mode by another backend.

    Attributes:
        backend: its name.
        rows: how many samples the passes took.
        outputs: every floating-point output.
        gradients: every gradient whose norm is not negligible beside the largest.
        other_shapes: outputs whose shape differs.
        repeats: how far the model is from itself when it runs twice, at most.
        tolerance: the error that the order of sums explains at the outputs' precision.
        failure: why the other backend raised; ``None`` where it did not.
    """

    cost: ClassVar[Cost] = "training"
    backend: str
    rows: int
    outputs: tuple[Difference, ...] = ()
    gradients: tuple[Difference, ...] = ()
    other_shapes: tuple[str, ...] = ()
    repeats: float = 0.0
    tolerance: float = 1e-3
    failure: str | None = None

    @staticmethod
    def collect(backend: OtherBackend, target: Target, sandbox: Sandbox, step: TrainingStep) -> BackendPasses:
        """Run the model twice as it is and once by the other backend, on two rows.

        Raises:
            Unavailable: the step never calls the model as a whole, or there is no such backend.
        """
        if step.root_call is None:
            raise Unavailable("the training step calls parts of the model, never the model as a whole")
        call = step.root_call
        if sliceable(call) and (size(call) or 0) > _MOST_ROWS:
            call = take(call, range(_MOST_ROWS))
        rows = size(call) or 1
        plain = _run(target, sandbox, call, None)
        again = _run(target, sandbox, call, None)
        try:
            other = _run(target, sandbox, call, backend.name)
        except _OtherFailedError as error:
            return BackendPasses(backend.name, rows, failure=str(error))
        shapes = tuple(
            name
            for name, value in plain[0].items()
            if name in other[0] and other[0][name].shape != value.shape
        )
        repeats = max(
            (d.error for d in (*_differences(plain[0], again[0]), *_differences(plain[1], again[1]))),
            default=0.0,
        )
        low = any(value.dtype in (torch.float16, torch.bfloat16) for value in plain[0].values())
        return BackendPasses(
            backend.name,
            rows,
            outputs=tuple(_differences(plain[0], other[0], around_mean=True)),
            gradients=tuple(_differences(_large(plain[1]), other[1])),
            other_shapes=shapes,
            repeats=repeats,
            tolerance=3e-2 if low or target.autocast_dtype else 1e-3,
        )


class _OtherFailedError(Exception):
    """The other backend raised."""


_Values = dict[str, torch.Tensor]


def _run(target: Target, sandbox: Sandbox, call: Any, backend: str | None) -> tuple[_Values, _Values]:
    """Outputs and gradients by name; of the sum of all outputs, each element weighted at random."""
    with sandbox.probe(), Program(target).precision():
        target.model.eval()
        seed_everything(0)
        args, kwargs = fresh(call, target.device)
        try:
            with _by(backend, target.model) as model:
                outputs = _named(model(*args, **kwargs))
                _backward(outputs)
        except Unavailable:
            raise
        except Exception as error:
            if backend is None:
                raise Unavailable(
                    f"the model does not run in eval mode on {_MOST_ROWS} rows ({one_line(error)})"
                ) from error
            raise _OtherFailedError(one_line(error)) from error
        gradients = {n: p.grad for n, p in target.model.named_parameters() if p.grad is not None}
        return {name: value.detach() for name, value in outputs.items()}, gradients


def _named(outputs: Any) -> _Values:
    return {name or "output": t for name, t in tensors(outputs) if t.is_floating_point() and t.numel()}


def _backward(outputs: _Values) -> None:
    generator = torch.Generator().manual_seed(0)
    total = None
    for value in outputs.values():
        if value.requires_grad:
            weights = torch.randn(value.shape, generator=generator).to(value.device)
            part = (value.float().masked_fill(~value.isfinite(), 0.0) * weights).sum()
            total = part if total is None else total + part
    if total is not None:
        total.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _by(backend: str | None, model: nn.Module) -> Iterator[Callable[..., Any]]:
    """The model computed by a backend; the sandbox puts back what is changed."""
    if backend is None:
        yield model
        return
    if backend.endswith(_ATTENTION):
        if not takes_backends(model):
            raise Unavailable("the model has no `set_attn_implementation`; name a backend of `torch.compile`")
        with attention_backend(model, backend.removesuffix(_ATTENTION)):
            yield model
        return
    import torch._dynamo

    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise Unavailable(f"`torch.compile` has no backend `{backend}`; it has {', '.join(sorted(known))}")
    plain = getattr(model, "_orig_mod", model)

    def call(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    stance = getattr(torch.compiler, "set_stance", None)
    with stance("default") if stance and "torch._dynamo" in sys.modules else nullcontext():
        yield torch.compile(call, backend=backend)


def _large(gradients: _Values) -> _Values:
    largest = max((float(value.float().norm()) for value in gradients.values()), default=0.0)
    return {name: value for name, value in gradients.items() if float(value.float().norm()) > 1e-3 * largest}


def _differences(one: _Values, other: _Values, *, around_mean: bool = False) -> Iterator[Difference]:
    for name, value in one.items():
        if name in other and other[name].shape == value.shape:
            a, b = value.double(), other[name].double()
            known = a.isfinite() & b.isfinite()
            if not bool((a.isfinite() == b.isfinite()).all()):
                yield Difference(name, float("inf"))
                continue
            a, b = a[known], b[known]
            spread = a - a.mean() if around_mean and a.numel() > 1 else a
            scale = float(spread.norm()) or float(a.norm())
            gap = float((a - b).norm())
            yield Difference(name, gap / scale if scale else float(gap > 0))
        elif name not in other:
            yield Difference(name, float("inf"))
