"""The target of a Lightning module, which stays as it is."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch

from debugkit.errors import UsageError, one_line, with_article
from debugkit.sandbox import Sandbox
from debugkit.target import Target

_PRECISIONS = {"16": "fp16", "bf16": "bf16", "32": "fp32"}


def target_from_lightning(
    module: Any,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    *,
    trainer: Any = None,
) -> Target:
    """The target of a ``LightningModule``, as ``trainer.fit(module, ...)`` would start.

    Loaders and optimizer are those of a trainer that is fitting the module already, else what the module's and the
    data module's own methods make. What the module logs meanwhile is thrown away. Afterwards ``fit`` gives the same
    weights bit for bit.

    Args:
        module: the module.
        train_dataloaders: as for ``trainer.fit``; one loader, or the module's own.
        val_dataloaders: as for ``trainer.fit``; of several, the first one counts.
        datamodule: as for ``trainer.fit``.
        trainer: the trainer, which knows precision, accumulation and the number of steps.

    Returns:
        A target whose ``training_step`` gives the loss of one batch. A module with manual optimization, a step that
        takes the iterator of the loader, or several training loaders leave what can be judged without a step.

    Raises:
        UsageError: ``module`` is no Lightning module, or making its loaders or its optimizer failed.
    """
    if not (isinstance(module, torch.nn.Module) and callable(getattr(module, "training_step", None))):
        raise UsageError(f"expected a `LightningModule`, not {with_article(type(module).__name__)}")
    configure: Any = module.configure_optimizers
    with Sandbox(Target(module)), _quiet(trainer):
        if (
            trainer is not None
            and trainer.optimizers
            and getattr(trainer, "lightning_module", None) is module
        ):
            datamodule = datamodule if datamodule is not None else getattr(trainer, "datamodule", None)
            train, val = trainer.train_dataloader, trainer.val_dataloaders
            optimizers = list(trainer.optimizers)
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        else:
            train, val = _loaders(module, train_dataloaders, val_dataloaders, datamodule)
            optimizers, schedulers = _configured(_made(module, configure))
    steps = _steps(module)
    train = train if steps and _is_one(train) else None
    return Target(
        model=module,
        train_loader=train,
        training_step=_training_step(trainer, datamodule, steps) if train is not None else None,
        optimizer=optimizers[0] if len(optimizers) == 1 else None,
        scheduler=schedulers[0] if len(schedulers) == len(optimizers) == 1 else None,
        eval_loader=_first(val),
        training_steps=_training_steps(trainer),
        accumulation_steps=getattr(trainer, "accumulate_grad_batches", 1) or 1,
        precision=_precision(trainer),
        name=type(module).__name__,
    )


def _made(owner: Any, make: Callable[[], Any]) -> Any:
    """What a method of the user makes."""
    try:
        return make()
    except Exception as error:
        name = f"{type(owner).__name__}.{getattr(make, '__name__', 'method')}"
        raise UsageError(
            f"`{name}` failed before `fit` ({one_line(error)}); let `DebugkitCallback` of "
            "`debugkit.integrations.lightning` look at it during `fit`"
        ) from error


def _loaders(module: Any, train: Any, val: Any, datamodule: Any) -> tuple[Any, Any]:
    """The loaders of ``fit(module, train, val, datamodule)``."""
    if hasattr(train, "train_dataloader"):
        train, datamodule = None, train
    if datamodule is not None:
        _made(datamodule, datamodule.prepare_data)
        _made(datamodule, lambda: datamodule.setup("fit"))
    owner = datamodule if datamodule is not None else module
    if train is None and _defines(owner, "train_dataloader"):
        train = _made(owner, owner.train_dataloader)
    if val is None and _defines(owner, "val_dataloader"):
        val = _made(owner, owner.val_dataloader)
    return train, val


def _defines(owner: Any, method: str) -> bool:
    """Whether a class of the user, not Lightning itself, has a method."""
    return any(
        method in vars(kind) and kind.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")
        for kind in type(owner).__mro__
    )


def _is_one(loader: Any) -> bool:
    return loader is not None and not isinstance(loader, Mapping | list | tuple)


def _first(loaders: Any) -> Any:
    while isinstance(loaders, Mapping | list | tuple):
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders), None)
    return loaders


def _configured(made: Any) -> tuple[list[Any], list[Any]]:
    """Optimizers and schedulers in what ``configure_optimizers`` returned."""
    if made is None:
        return [], []
    if hasattr(made, "param_groups"):
        return [made], []
    parts = list(made) if isinstance(made, list | tuple) else [made]
    if parts and isinstance(parts[0], list | tuple):
        optimizers, schedulers = list(parts[0]), parts[1] if len(parts) > 1 else []
        schedulers = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
    else:
        optimizers = [part["optimizer"] if isinstance(part, Mapping) else part for part in parts]
        given = [part.get("lr_scheduler") if isinstance(part, Mapping) else None for part in parts]
        schedulers = [part for part in given if part is not None]
    return optimizers, [part["scheduler"] if isinstance(part, Mapping) else part for part in schedulers]


def _steps(module: Any) -> int:
    """How many arguments ``training_step`` is given; 0 where it can't be called on a batch."""
    if not getattr(module, "automatic_optimization", True):
        return 0
    parameters = list(inspect.signature(module.training_step).parameters.values())
    if any(parameter.name == "dataloader_iter" for parameter in parameters):
        return 0
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    return min(2, sum(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters))


def _training_step(trainer: Any, datamodule: Any, arguments: int) -> Callable[[Any, Any], torch.Tensor]:
    """What ``fit`` does before ``backward``, but for the division by the accumulated batches."""
    plugin = getattr(trainer, "precision_plugin", None)

    def training_step(model: Any, batch: Any) -> torch.Tensor:
        with _attached(model, trainer), _quiet(trainer):
            batch = _given(model, batch, plugin, datamodule)
            with plugin.train_step_context() if plugin is not None else nullcontext():
                result = model.training_step(*(batch, 0)[:arguments])
        loss: torch.Tensor = result["loss"] if isinstance(result, Mapping) else result
        return loss

    def in_window(model: Any, batch: Any, window: Sequence[Any]) -> torch.Tensor:
        return training_step(model, batch) / len(window)

    training_step.in_window = in_window  # type: ignore[attr-defined]
    return training_step


def _given(model: Any, batch: Any, plugin: Any, datamodule: Any) -> Any:
    """A batch as ``training_step`` gets it."""
    batch = plugin.convert_input(batch) if plugin is not None else batch
    hooks: list[tuple[str, tuple[Any, ...]]] = [
        ("on_before_batch_transfer", (0,)),
        ("transfer_batch_to_device", (model.device, 0)),
        ("on_after_batch_transfer", (0,)),
    ]
    for hook, rest in hooks:
        owner = datamodule if datamodule is not None and _defines(datamodule, hook) else model
        batch = getattr(owner, hook)(batch, *rest)
    return batch


@contextmanager
def _attached(model: Any, trainer: Any) -> Iterator[None]:
    """A copy of a module has lost its trainer, which its step may ask."""
    if trainer is None or getattr(model, "_trainer", trainer) is not None:
        yield
        return
    model.trainer = trainer
    try:
        yield
    finally:
        model.trainer = None


@contextmanager
def _quiet(trainer: Any) -> Iterator[None]:
    """Throw away what a module logs, in both ways: through ``self.log`` and to its loggers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*self\.log\(")
        if trainer is None:
            yield
            return
        barebones, loggers = trainer.barebones, trainer.loggers
        trainer.barebones = True
        if loggers:
            trainer.loggers = [_silent_logger(type(trainer))]
        try:
            yield
        finally:
            trainer.barebones = barebones
            trainer.loggers = loggers


def _silent_logger(kind: type[Any]) -> Any:
    other = any(base.__module__.startswith("pytorch_lightning.") for base in kind.__mro__)
    package = "pytorch_lightning" if other else "lightning.pytorch"
    return import_module(f"{package}.loggers.logger").DummyLogger()


def _training_steps(trainer: Any) -> int | None:
    """Optimizer steps that a trainer plans; ``None`` where it does not know them yet."""
    if trainer is None:
        return None
    steps = trainer.max_steps
    if getattr(trainer, "training", False):
        steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < math.inf else None


def _precision(trainer: Any) -> str | None:
    """What training autocasts to."""
    bits, _, kind = str(getattr(trainer, "precision", "")).partition("-")
    return _PRECISIONS.get(bits) if kind == "mixed" else None
