"""Where a loss that is NaN or infinite comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import input_ids, split, tensors
from debugkit.errors import Unavailable
from debugkit.evidence import Cost
from debugkit.loss.losses import LOSSES, bind_loss
from debugkit.probes.batches import Batches
from debugkit.probes.training_step import TrainingStep, run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.source import user_location
from debugkit.tracing.tape import flat
from debugkit.tracing.trace import Recorder, record


@dataclass(frozen=True)
class NonFinite:
    """The first place where values stop being finite in a step whose loss is not.

    Attributes:
        kind: whether a part of the batch, a parameter, or a result is the first.
        name: the part, the parameter, or the function.
        module: dotted name of the module in whose forward it happened.
        location: the user's source line.
        infinite: function and source line that first gave the infinite values which it turned into NaN.
        ignored: whether every target of the loss function is its ``ignore_index``.
        per_token: whether the targets are one per token of the batch.
    """

    cost: ClassVar[Cost] = "forward"
    kind: Literal["batch", "parameter", "result", "unknown"]
    name: str = ""
    module: str | None = None
    location: str | None = None
    infinite: tuple[str, str | None] | None = None
    ignored: bool = False
    per_token: bool = False

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches, step: TrainingStep) -> NonFinite:
        """Look at the batch and the parameters; run the step again only where these are finite.

        Raises:
            Unavailable: the loss is finite.
        """
        if torch.tensor(step.loss).isfinite():
            raise Unavailable("the loss is finite")
        for path, tensor in tensors(batches.first):
            if _breaks([tensor], infinite=True):
                return NonFinite("batch", path)
        for name, parameter in target.model.named_parameters():
            if _breaks([parameter], infinite=True):
                return NonFinite("parameter", name, name.rpartition(".")[0])
        with sandbox.probe():
            if not sandbox.training[""]:
                target.model.train()
            with record(target.model) as recorder, _First(recorder, infinite=step.loss in _INFINITE) as first:
                run_step(target, batches.first)
        ids = input_ids(batches.first)
        labels = split(batches.first)[1]
        tagged = ids is not None and isinstance(labels, torch.Tensor) and labels.shape == ids.shape
        return replace(first.found or NonFinite("unknown"), per_token=tagged)


_INFINITE = (float("inf"), float("-inf"))


class _First(TorchFunctionMode):
    def __init__(self, recorder: Recorder, infinite: bool) -> None:
        super().__init__()
        self.found: NonFinite | None = None
        self._recorder = recorder
        self._infinite = infinite
        self._source: tuple[str, str | None] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.found is not None:
            return func(*args, **kwargs)
        broken = _breaks(flat((args, kwargs)), self._infinite)
        unbounded = broken or _breaks(flat((args, kwargs)), infinite=True)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if not broken and _breaks(_learned(result), self._infinite):
            source = self._source if unbounded else None
            module, location = self._recorder.module, user_location(outer=True)
            nothing = _ignores_all(func, args, kwargs)
            self.found = NonFinite("result", name, module, location, source, nothing)
        elif not unbounded and self._source is None and _breaks(_learned(result), infinite=True):
            self._source = (name, user_location(outer=True))
        return result


def _ignores_all(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a loss function was given nothing but targets that it ignores."""
    given = bind_loss(func, args, kwargs) if func in LOSSES else {}
    target, ignored = given.get("target"), given.get("ignore_index")
    return isinstance(target, torch.Tensor) and ignored is not None and bool((target == ignored).all())


def _learned(value: Any) -> Iterator[torch.Tensor]:
    return (tensor for tensor in flat(value) if tensor.requires_grad)


def _breaks(values: Any, infinite: bool) -> bool:
    """Whether a floating value is NaN, or infinite where that is looked for."""
    for value in values:
        if (
            value.is_floating_point()
            and value.layout is torch.strided
            and not value.is_meta
            and value.numel()
        ):
            held = value.detach()
            if bool(held.isnan().any()) or (infinite and bool(held.isinf().any())):
                return True
    return False
