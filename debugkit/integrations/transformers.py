"""The target of a ``transformers.Trainer``, which stays as it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from debugkit.errors import UsageError
from debugkit.sandbox import Sandbox
from debugkit.state.objects import Attributes
from debugkit.target import Target

_CONTAINERS = (dict, list, set, deque)


def target_from_trainer(trainer: Any) -> Target:
    """The target of a ``transformers.Trainer`` or a subclass, as ``trainer.train()`` would start.

    Loader, optimizer and scheduler are made by the trainer's own methods, overridden ones included; the
    training step is its ``compute_loss``. The trainer itself is left as it was: ``trainer.train()``
    afterwards gives the same weights bit for bit.

    Args:
        trainer: the trainer, before ``train()``.

    Returns:
        A target whose ``training_step`` gives the loss of one batch, not divided by
        ``gradient_accumulation_steps``. With DeepSpeed or FSDP, which make their own, it has no optimizer.

    Raises:
        UsageError: transformers is not installed, ``trainer`` is no Trainer, or it has no training data.
    """
    base = _trainer_class()
    if not isinstance(trainer, base):
        raise UsageError(f"expected a `transformers.Trainer`, not a `{type(trainer).__name__}`")
    if trainer.train_dataset is None and type(trainer).get_train_dataloader is base.get_train_dataloader:
        raise UsageError("the trainer has no training data; pass `Trainer(train_dataset=...)`")
    args = trainer.args
    with Sandbox(Target(trainer.model)), _unchanged(trainer):
        train_loader = trainer.get_train_dataloader()
        eval_loader = _eval_loader(trainer)
        steps = _training_steps(args, train_loader)
        optimizer, scheduler = _optimizer_and_scheduler(trainer, steps)
    return Target(
        model=trainer.model,
        train_loader=train_loader,
        training_step=_training_step(trainer),
        optimizer=optimizer,
        scheduler=scheduler,
        eval_loader=eval_loader,
        tokenizer=_tokenizer(trainer),
        metric=_metric(trainer),
        training_steps=steps,
        accumulation_steps=args.gradient_accumulation_steps,
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        name=getattr(args, "run_name", None) or type(trainer.model).__name__,
    )


def _trainer_class() -> Any:
    try:
        from transformers import Trainer
    except ImportError as error:
        raise UsageError(
            "`Target.from_trainer` needs transformers and accelerate; install `debugkit[transformers]`"
        ) from error
    return Trainer


def _training_step(trainer: Any) -> Callable[[torch.nn.Module, Any], torch.Tensor]:
    """What ``Trainer.training_step`` does before ``backward``; the trainer's own records stay as they are.

    Its attribute ``in_window(model, batch, window)`` gives what is backpropagated for a batch as one of those that an
    optimizer step takes, and ``train_dataset`` is the trainer's data with all its columns.
    """

    def training_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return _loss(trainer, model, batch, [batch])[0]

    def in_window(model: torch.nn.Module, batch: Any, window: Sequence[Any]) -> torch.Tensor:
        loss, items = _loss(trainer, model, batch, window)
        return loss if _is_scaled(trainer, items) else loss / len(window)

    training_step.in_window = in_window  # type: ignore[attr-defined]
    training_step.train_dataset = trainer.train_dataset  # type: ignore[attr-defined]
    return training_step


def _loss(
    trainer: Any, model: torch.nn.Module, batch: Any, window: Sequence[Any]
) -> tuple[torch.Tensor, Any]:
    """The loss of a batch, and how many targets the window's batches hold, where the trainer counts them."""
    with _unchanged(trainer):
        _as_train_begins(trainer, model)
        model.train()
        _, items = trainer.get_batch_samples(iter(window), len(window), trainer.args.device)
        inputs = trainer._prepare_inputs(batch)
        items = None if trainer.args.n_gpu > 1 else items
        with _forward_autocast(trainer.accelerator, model), trainer.compute_loss_context_manager():
            loss: torch.Tensor = trainer.compute_loss(model, inputs, num_items_in_batch=items)
    return loss, items


def _is_scaled(trainer: Any, items: Any) -> bool:
    """Whether the trainer takes a loss for one that is divided by the targets of the whole window."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is not None:
        return bool(scaled)
    accepts = trainer.model_accepts_loss_kwargs and items is not None
    return bool(accepts) or getattr(trainer, "compute_loss_func", None) is not None


def _as_train_begins(trainer: Any, model: torch.nn.Module) -> None:
    """What ``train()`` does to the model first: activation checkpointing, special tokens in the config."""
    args = trainer.args
    wanted = getattr(args, "activation_checkpointing", getattr(args, "gradient_checkpointing", False))
    if wanted and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        _enable_checkpointing(args, model)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    pad = getattr(_tokenizer(trainer), "pad_token_id", None)
    if pad is not None and getattr(config, "pad_token_id", pad) is None:
        config.pad_token_id = pad


def _enable_checkpointing(args: Any, model: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        options = dict(args.activation_checkpointing_kwargs or {})
        layers, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=options or None, every_n_layers=layers, offload=offload
        )
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)


@contextmanager
def _forward_autocast(accelerator: Any, model: torch.nn.Module) -> Iterator[None]:
    """Autocast as accelerate does it: the model's forward and nothing else, its outputs in float32."""
    if not getattr(accelerator, "native_amp", False):
        yield
        return
    from accelerate.utils import convert_to_fp32

    running: list[Any] = []

    def enter(module: torch.nn.Module, inputs: Any) -> None:
        running.append(accelerator.autocast())
        running[-1].__enter__()

    def leave(module: torch.nn.Module, inputs: Any, outputs: Any) -> Any:
        running.pop().__exit__(None, None, None)
        return convert_to_fp32(outputs)

    with ExitStack() as stack:
        stack.enter_context(torch.autocast(accelerator.device.type, enabled=False))
        stack.callback(model.register_forward_pre_hook(enter).remove)
        stack.callback(model.register_forward_hook(leave, always_call=True).remove)
        yield


def _eval_loader(trainer: Any) -> Any:
    """The loader of the evaluation split; of the first one where there are several."""
    if trainer.eval_dataset is None:
        return None
    if isinstance(trainer.eval_dataset, dict):
        return trainer.get_eval_dataloader(next(iter(trainer.eval_dataset)))
    return trainer.get_eval_dataloader()


def _training_steps(args: Any, loader: Any) -> int | None:
    """Optimizer steps; ``None`` for a loader without a length that is not limited by ``max_steps``."""
    if args.max_steps > 0:
        return int(args.max_steps)
    try:
        batches = len(loader)
    except TypeError:
        return None
    per_epoch = max(1, math.ceil(batches / int(args.gradient_accumulation_steps)))
    return math.ceil(float(args.num_train_epochs) * per_epoch)


def _optimizer_and_scheduler(trainer: Any, steps: int | None) -> tuple[Any, Any]:
    """The pair that training starts with, made on a trainer whose attributes the caller puts back."""
    if steps is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return None, None
    if trainer._created_lr_scheduler:
        trainer.lr_scheduler = None
    with _unchanged_optimizer(trainer.optimizer), _unchanged_hooks(trainer.model):
        if hasattr(trainer, "_prepare_for_training"):
            trainer.create_optimizer()
            trainer.create_scheduler(num_training_steps=steps)
        else:
            trainer.create_optimizer_and_scheduler(num_training_steps=steps)
        return trainer.optimizer, trainer.lr_scheduler


def _tokenizer(trainer: Any) -> Any:
    """The tokenizer, taken out of a multimodal processor; ``None`` for processors of images or sound alone."""
    processor = getattr(trainer, "processing_class", None)
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer if hasattr(tokenizer, "convert_ids_to_tokens") else None


def _metric(trainer: Any) -> Callable[..., Any] | None:
    """``compute_metrics``, unless it reads what only the trainer's own evaluation loop can give."""
    own_loop = (
        trainer.preprocess_logits_for_metrics is not None
        or getattr(trainer.args, "batch_eval_metrics", False)
        or getattr(trainer.args, "predict_with_generate", False)
    )
    metric: Callable[..., Any] | None = trainer.compute_metrics
    return None if own_loop else metric


@contextmanager
def _unchanged(trainer: Any) -> Iterator[None]:
    """Put the trainer and what it keeps books in back as they were: loaders, state, logs, callbacks."""
    accelerator = trainer.accelerator
    owners = [trainer, trainer.args, trainer.state, trainer.control, trainer.callback_handler]
    owners += [accelerator, accelerator.gradient_state]
    attributes = [Attributes(owner) for owner in owners]
    nested = [(inner, inner.copy()) for value in vars(trainer).values() for inner in _inside(value, depth=3)]
    try:
        yield
    finally:
        for saved in attributes:
            saved.restore()
        for container, contents in nested:
            container.clear()
            (container.update if isinstance(container, (dict, set)) else container.extend)(contents)


def _inside(value: Any, depth: int) -> Iterator[Any]:
    """The containers in a dictionary, such as the lists of a metrics log, and those in them."""
    if depth and isinstance(value, dict) and len(value) <= 1000:
        for inner in value.values():
            if isinstance(inner, _CONTAINERS):
                yield inner
                yield from _inside(inner, depth - 1)


@contextmanager
def _unchanged_optimizer(optimizer: Any) -> Iterator[None]:
    """Undo what a scheduler does to a given optimizer when it is made: learning rate, step counter."""
    if optimizer is None:
        yield
        return
    attributes = Attributes(optimizer)
    groups = [(group, dict(group)) for group in optimizer.param_groups]
    try:
        yield
    finally:
        attributes.restore()
        for group, settings in groups:
            group.clear()
            group.update(settings)


@contextmanager
def _unchanged_hooks(model: torch.nn.Module) -> Iterator[None]:
    """Take out the hooks that a layer-wise optimizer puts on parameters when it is made."""
    before = [(p, dict(p._post_accumulate_grad_hooks or {})) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, hooks in before:
            now: Any = parameter._post_accumulate_grad_hooks
            if now and dict(now) != hooks:
                now.clear()
                now.update(hooks)
