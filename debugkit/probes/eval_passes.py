"""Forward passes in eval mode: two with different seeds, which have to agree."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.batch import fresh, tensors
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.training_step import TrainingStep, marks
from debugkit.program import Program
from debugkit.sandbox import Sandbox, seed_everything
from debugkit.source import user_location
from debugkit.target import Target

DROPOUTS = frozenset(
    {
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
        torch.dropout_,
    }
)
_SAMPLING = frozenset(
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
        "rrelu",
        "rrelu_",
    ]
)


@dataclass(frozen=True)
class RandomCall:
    """A random operation that ran in eval mode.

    Attributes:
        op: such as ``dropout`` or ``randn_like``.
        dropout: whether it drops activations; otherwise it samples.
        location: the user's source line.
    """

    op: str
    dropout: bool
    location: str | None


@dataclass(frozen=True)
class EvalPasses:
    """Two forward passes of the model in eval mode on the inputs of the traced step.

    Attributes:
        gap: the largest difference between the outputs, relative to their standard deviation.
        tolerance: the gap that rounding explains at the outputs' precision.
        repeats: whether two passes from the same seed agree (``True`` when all passes agree).
        random_calls: random operations seen in eval mode.
        still_training: modules that stay in train mode after ``model.eval()``, by dotted name.
        mode_matters: whether the outputs in train mode differ from those in eval mode.
    """

    cost: ClassVar[Cost] = "backward"
    gap: float
    tolerance: float
    repeats: bool
    random_calls: tuple[RandomCall, ...]
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
            with torch.no_grad(), Program(target).precision():
                watch = _RandomWatch()
                with watch:
                    first = _outputs(target, args, kwargs, seed=0)
                second = _outputs(target, args, kwargs, seed=1)
                gap, tolerance = _gap(first, second)
                repeats = True
                if gap > tolerance:
                    repeats = _gap(first, _outputs(target, args, kwargs, seed=0))[0] <= tolerance
        return EvalPasses(
            gap=gap,
            tolerance=tolerance,
            repeats=repeats,
            random_calls=tuple(dict.fromkeys(watch.calls)),
            still_training=still,
            mode_matters=_differ(step.output_marks, marks(first)),
        )


class _RandomWatch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RandomCall] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if drops(func, args, kwargs):
            self.calls.append(RandomCall(name.rstrip("_"), True, user_location(outer=True)))
        elif name in _SAMPLING:
            self.calls.append(RandomCall(name.rstrip("_"), False, user_location(outer=True)))
        return func(*args, **kwargs)


def drops(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a torch function drops activations."""
    if func in DROPOUTS:
        given = _bound(func, args, kwargs)
        return bool(given.get("training", given.get("train", True))) and float(given.get("p", 0.5)) > 0
    if func is F.scaled_dot_product_attention:
        return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)) > 0
    if func is F.multi_head_attention_forward:
        given = _bound(func, args, kwargs)
        return bool(given["training"]) and float(given["dropout_p"]) > 0
    return False


def _bound(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except ValueError:  # a builtin: torch.dropout(input, p, train)
        return dict(zip(("input", "p", "train"), args, strict=False)) | dict(kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _outputs(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> Any:
    seed_everything(seed)
    args, kwargs = fresh(args, target.device), fresh(kwargs, target.device)
    try:
        return target.model(*args, **kwargs)
    except Exception as error:
        raise Broken(f"the model raised in eval mode: {one_line(error)}") from error


def _floats(outputs: Any) -> Iterator[torch.Tensor]:
    return (t for _, t in tensors(outputs) if t.is_floating_point() and t.numel())


def _gap(first: Any, second: Any) -> tuple[float, float]:
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
