"""Forward passes in eval mode: two with different seeds, which have to agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import fresh, tensors
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.training_step import TrainingStep, marks
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.state.tensor_state import same_bits
from debugkit.target import Target
from debugkit.tracing.dropout import HandMadeDropout, bound, drops
from debugkit.tracing.program import Program
from debugkit.tracing.source import user_location

SAMPLING = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "normal",
        "bernoulli",
        "multinomial",
        "randperm",
        "poisson",
        "normal_",
        "uniform_",
        "bernoulli_",
        "exponential_",
        "gumbel_softmax",
    ]
)


@dataclass(frozen=True)
class RandomCall:
    """A random operation that ran in eval mode.

    Attributes:
        op: such as ``dropout`` or ``randn_like``.
        kind: ``dropout`` for what torch turns off in eval mode, ``by hand`` for a scaled random mask, ``sample``
            for the rest.
        location: the user's source line.
    """

    op: str
    kind: Literal["dropout", "by hand", "sample"]
    location: str | None


@dataclass(frozen=True)
class EvalPasses:
    """Two forward passes of the model in eval mode on the inputs of the traced step.

    All passes run under the same watch: torch takes its fused paths only without one, and those give other
    values at padded positions.

    Attributes:
        gap: the largest difference between the outputs, relative to their standard deviation.
        tolerance: the gap that rounding explains at the outputs' precision.
        repeats: whether two passes from the same seed agree (``True`` when all passes agree).
        random_calls: random operations seen in eval mode.
        batch_statistics: buffer and source line of each batch normalisation that was given running statistics
            and used, and updated them with, the batch's own.
        moved_buffers: floating-point buffers that the second pass changed.
        still_training: modules that stay in train mode after ``model.eval()``, by dotted name.
        mode_matters: whether the outputs in train mode differ from those in eval mode.
    """

    cost: ClassVar[Cost] = "backward"
    gap: float
    tolerance: float
    repeats: bool
    random_calls: tuple[RandomCall, ...]
    batch_statistics: tuple[tuple[str, str | None], ...]
    moved_buffers: tuple[str, ...]
    still_training: tuple[str, ...]
    mode_matters: bool

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, step: TrainingStep) -> EvalPasses:
        """Run two passes without gradients; a third one only where they differ.

        Raises:
            Unavailable: the step never calls the model as a whole, so that it can't be called again.
            Broken: the model raised in eval mode.
        """
        if step.root_call is None:
            raise Unavailable("the training step calls parts of the model, never the model as a whole")
        args, kwargs = step.root_call
        with sandbox.probe():
            target.model.eval()
            still = tuple(name for name, module in target.model.named_modules() if module.training)
            with torch.no_grad(), Program(target).precision(), _Watch(target.model) as watch:
                first = _outputs(target, args, kwargs, seed=0)
                before = _float_buffers(target.model)
                second = _outputs(target, args, kwargs, seed=1)
                moved = _moved(before, dict(target.model.named_buffers()))
                gap, tolerance = gap_between(first, second)
                repeats = True
                if gap > tolerance:
                    repeats = gap_between(first, _outputs(target, args, kwargs, seed=0))[0] <= tolerance
        return EvalPasses(
            gap=gap,
            tolerance=tolerance,
            repeats=repeats,
            random_calls=tuple(dict.fromkeys(watch.calls)),
            batch_statistics=tuple(watch.batch_statistics.items()),
            moved_buffers=moved,
            still_training=still,
            mode_matters=_differ(step.output_marks, marks(first)),
        )


class _Watch(TorchFunctionMode):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.calls: list[RandomCall] = []
        self.batch_statistics: dict[str, str | None] = {}
        self._buffers = {id(buffer): name for name, buffer in model.named_buffers()}
        self._masks = HandMadeDropout()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if drops(func, args, kwargs):
            self._note(name, "dropout")
        elif name in SAMPLING:
            self._note(name, "sample")
        elif func is F.batch_norm:
            given = bound(func, args, kwargs)
            buffer = self._buffers.get(id(given["running_mean"]))
            if given["training"] and buffer is not None:
                self.batch_statistics.setdefault(buffer, user_location(outer=True))
        result = func(*args, **kwargs)
        if self._masks.sees(name, args, result):
            self._note("dropout", "by hand")
        return result

    def _note(self, name: str, kind: Literal["dropout", "by hand", "sample"]) -> None:
        self.calls.append(RandomCall(name.rstrip("_"), kind, user_location(outer=True)))


def _outputs(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> Any:
    seed_everything(seed)
    args, kwargs = fresh(args, target.device), fresh(kwargs, target.device)
    try:
        return target.model(*args, **kwargs)
    except Exception as error:
        raise Broken(f"the model raised in eval mode: {one_line(error)}") from error


def _float_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.detach().clone() for n, b in model.named_buffers() if b.is_floating_point()}


def _moved(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> tuple[str, ...]:
    return tuple(
        name
        for name, buffer in before.items()
        if name in now and now[name].shape == buffer.shape and not same_bits(now[name], buffer)
    )


def _floats(outputs: Any) -> Iterator[torch.Tensor]:
    return (t for _, t in tensors(outputs) if t.is_floating_point() and t.numel())


def gap_between(first: Any, second: Any) -> tuple[float, float]:
    """The largest difference between outputs in standard deviations, and what rounding explains at their precision."""
    gap, tolerance = 0.0, 1e-4
    for one, other in zip(_floats(first), _floats(second), strict=False):
        if one.dtype in (torch.float16, torch.bfloat16):
            tolerance = 2e-2
        if one.shape != other.shape:
            return float("inf"), tolerance
        spread = float(one.float().std(correction=0)) or float(one.float().abs().max()) or 1.0
        difference = (one.float() - other.float()).abs().nan_to_num(0.0)
        gap = max(gap, float(difference.max()) / spread)
    return gap, tolerance


def _differ(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    if len(one) != len(other):
        return True
    scale = max((abs(value) for value in (*one, *other)), default=0.0) or 1.0
    return any(abs(a - b) > 1e-5 * scale for a, b in zip(one, other, strict=True))
