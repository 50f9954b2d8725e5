"""What the user hands over: the objects that a training run is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from debugkit.errors import UsageError, nearest, with_article
from debugkit.evidence import root

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@root
@dataclass(frozen=True, eq=False)
class Target:
    """The objects of a training run, as they are about to be trained.

    Args:
        model: the model, in the state (mode, device, precision) in which training will start.
        train_loader: an iterable of batches: ``(x, y)`` tuples, mappings with ``labels``, or anything
            that ``training_step`` takes. ``None`` leaves only the checks that look at the model.
        loss_fn: ``(outputs, targets) -> scalar``; ``None`` when the model returns its own loss.
        training_step: ``(model, batch) -> loss``; overrides ``loss_fn``. It computes the loss only:
            no ``backward``, no ``optimizer.step``.
        optimizer: the optimizer that training will use.
        scheduler: the learning-rate scheduler that training will use.
        eval_loader: batches of the evaluation split.
        tokenizer: the tokenizer that made the token ids.
        metric: ``(outputs, targets) -> float``, or transformers' ``compute_metrics``.
        training_steps: planned optimizer steps.
        accumulation_steps: batches per optimizer step.
        precision: what training will autocast to: ``"fp32"``, ``"bf16"``, ``"fp16"`` or a torch dtype.
        name: how reports call this target.

    Raises:
        UsageError: an argument has the wrong type; the message names it.
    """

    model: torch.nn.Module
    train_loader: Iterable[Any] | None = None
    loss_fn: Callable[..., Any] | None = None
    training_step: Callable[..., Any] | None = None
    optimizer: Any = None
    scheduler: Any = None
    eval_loader: Iterable[Any] | None = None
    tokenizer: Any = None
    metric: Callable[..., Any] | None = None
    training_steps: int | None = None
    accumulation_steps: int = 1
    precision: str | torch.dtype | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        import torch

        if not isinstance(self.model, torch.nn.Module):
            raise UsageError(f"`model` must be a torch.nn.Module, not {_kind(self.model)}")
        for field in ("train_loader", "eval_loader"):
            value = getattr(self, field)
            if value is not None and not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
                raise UsageError(f"`{field}` must be an iterable of batches, not {_kind(value)}")
        for field in ("loss_fn", "training_step", "metric"):
            value = getattr(self, field)
            if value is not None and not callable(value):
                raise UsageError(f"`{field}` must be callable, not {_kind(value)}")
        if isinstance(self.loss_fn, type):
            name = self.loss_fn.__name__
            raise UsageError(f"`loss_fn` is the class `{name}`; pass an instance: `loss_fn={name}()`")
        if self.optimizer is not None and not hasattr(self.optimizer, "param_groups"):
            raise UsageError(f"`optimizer` must have `param_groups`, not be {_kind(self.optimizer)}")
        if self.accumulation_steps < 1:
            raise UsageError(f"`accumulation_steps` must be at least 1, not {self.accumulation_steps}")
        words = {*PRECISIONS, *PRECISIONS.values()}
        if isinstance(self.precision, str) and self.precision not in words:
            hint = nearest(self.precision, sorted(words))
            raise UsageError(f"`precision` is `{self.precision}`; it must be fp32, bf16 or fp16{hint}")

    @classmethod
    def from_trainer(cls, trainer: Any) -> Target:
        """The target of a ``transformers.Trainer`` (or a subclass, TRL's too), which stays as it is.

        Raises:
            UsageError: ``trainer`` is no Trainer, or has no train data set.
        """
        from debugkit.integrations.transformers import target_from_trainer

        return target_from_trainer(trainer)

    @classmethod
    def from_lightning(
        cls,
        module: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *,
        trainer: Any = None,
    ) -> Target:
        """The target of a ``LightningModule``, as ``trainer.fit(module, ...)`` would start; all stays as it is.

        Raises:
            UsageError: ``module`` is no Lightning module, or making its loaders or its optimizer failed.
        """
        from debugkit.integrations.lightning_target import target_from_lightning

        return target_from_lightning(module, train_dataloaders, val_dataloaders, datamodule, trainer=trainer)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype that training autocasts to, or ``None`` when it does not."""
        import torch

        dtype = self.precision
        if isinstance(dtype, str):
            dtype = getattr(torch, PRECISIONS.get(dtype, dtype))
        return None if dtype is torch.float32 else dtype

    @property
    def device(self) -> torch.device:
        """The device of the first parameter or buffer; the CPU for a model without any."""
        import torch

        for tensor in (*self.model.parameters(), *self.model.buffers()):
            return tensor.device
        return torch.device("cpu")


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    return with_article(type(value).__name__)
