"""Loss calls: what torch's loss functions expect, and what they were given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F

from debugkit.tracing.graph import Node, Producer

Expects = Literal["logits", "binary logits", "log-probabilities", "probabilities", "values"]

LOSSES: dict[Callable[..., Any], Expects] = {
    F.cross_entropy: "logits",
    F.nll_loss: "log-probabilities",
    F.binary_cross_entropy: "probabilities",
    F.binary_cross_entropy_with_logits: "binary logits",
    F.kl_div: "log-probabilities",
    F.ctc_loss: "log-probabilities",
    F.multilabel_soft_margin_loss: "binary logits",
    F.soft_margin_loss: "values",
    F.mse_loss: "values",
    F.l1_loss: "values",
    F.smooth_l1_loss: "values",
    F.huber_loss: "values",
    F.poisson_nll_loss: "values",
    F.gaussian_nll_loss: "values",
    F.multi_margin_loss: "values",
    F.multilabel_margin_loss: "values",
    F.hinge_embedding_loss: "values",
}

ELEMENTWISE = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "kl_div"})
"""Names of the losses that broadcast predictions and targets against each other."""

_RENAMED = {"nll_loss_nd": "nll_loss", "log_probs": "input", "targets": "target"}
_SAMPLED_ROWS = 512
_MOST_WEIGHTS = 10_000


@dataclass(frozen=True)
class Facts:
    """What a tensor given to a loss looks like.

    Attributes:
        shape: its full shape.
        dtype: such as ``float32``.
        minimum: smallest value in the sampled rows.
        maximum: largest value in the sampled rows.
        row_sums: smallest and largest sum over the classes.
        row_logsumexps: smallest and largest log-sum-exp over the classes.
        rows: how many rows were sampled.
        normalised_dims: dimensions over which all values, taken as probabilities, sum to 1.
        log_normalised_dims: the same for values taken as log-probabilities.
        mean: mean of the sampled rows' values.
        std: their population standard deviation.
        integral: whether the sampled rows hold whole numbers only.
        at_ends: share of the sampled rows' values that equal the smallest or the largest one.
    """

    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    row_sums: tuple[float, float]
    row_logsumexps: tuple[float, float]
    rows: int
    normalised_dims: tuple[int, ...]
    log_normalised_dims: tuple[int, ...]
    mean: float = float("nan")
    std: float = float("nan")
    integral: bool = False
    at_ends: float = 0.0


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function during the step.

    Attributes:
        name: such as ``cross_entropy``.
        expects: what its input must be.
        input: facts of the predictions.
        target: facts of the targets, where they are a tensor.
        class_dim: the dimension of the classes in the input.
        producers: the operations that computed the input.
        reduction: ``mean``, ``sum``, ``none`` or ``batchmean``.
        ignore_index: targets that do not count.
        label_smoothing: as given.
        weight: shape of the class weights, where given.
        class_weights: the weight of each class, where these are given one by one.
        pos_weights: how much more each positive label weighs, where that is given.
        log_target: for ``kl_div``: whether the target holds log-probabilities.
        value: the result, for a scalar result.
        location: the user's source line.
        module: dotted name of the module in whose forward it ran; ``None`` outside the model.
        node: the result's autograd node.
        connected: whether the step's loss depends on the result.
        input_node: the input's autograd node.
    """

    name: str
    expects: Expects
    input: Facts
    target: Facts | None
    class_dim: int
    producers: tuple[Producer, ...]
    reduction: str
    ignore_index: int | None
    label_smoothing: float
    weight: tuple[int, ...] | None
    log_target: bool
    value: float | None
    location: str | None
    module: str | None
    node: Node = field(repr=False)
    connected: bool = False
    input_node: Node = field(default=None, repr=False)
    class_weights: tuple[float, ...] | None = field(default=None, repr=False)
    pos_weights: tuple[float, ...] | None = field(default=None, repr=False)


def loss_call(
    func: Callable[..., Any],
    given: Mapping[str, Any],
    producers: tuple[Producer, ...],
    location: str | None,
    module: str | None,
    result: Any,
) -> LossCall | None:
    """Describe a call of a loss function; ``None`` where its input is no tensor with values.

    Args:
        func: one of :data:`LOSSES`.
        given: its arguments, from :func:`bind_loss`.
        producers: the operations that computed the input.
        location: the user's source line.
        module: the module in whose forward it ran.
        result: what it returned.
    """
    prediction, weight = given.get("input"), given.get("weight")
    if not isinstance(prediction, torch.Tensor) or not prediction.numel() or _is_batched(prediction):
        return None
    name = loss_name(func)
    by_channel = name in ("cross_entropy", "nll_loss") and prediction.ndim > 1
    class_dim = 1 if by_channel else prediction.ndim - 1
    scalar = isinstance(result, torch.Tensor) and result.numel() == 1
    ignored = given.get("ignore_index")
    with torch.no_grad():
        facts, target_facts = facts_of(prediction, class_dim), _target_facts(given.get("target"), class_dim)
    return LossCall(
        name=name,
        expects=LOSSES[func],
        input=facts,
        target=target_facts,
        class_dim=class_dim,
        producers=producers,
        reduction=str(given.get("reduction", "mean")),
        ignore_index=ignored if isinstance(ignored, int) else None,
        label_smoothing=float(given.get("label_smoothing") or 0.0),
        weight=tuple(weight.shape) if isinstance(weight, torch.Tensor) else None,
        log_target=bool(given.get("log_target", False)),
        value=float(result.detach()) if scalar else None,
        location=location,
        module=module,
        node=result.grad_fn if isinstance(result, torch.Tensor) else None,
        input_node=prediction.grad_fn,
        class_weights=_one_by_one(weight) if by_channel else None,
        pos_weights=_one_by_one(given.get("pos_weight")),
    )


def _is_batched(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for many inside ``torch.vmap``, where its values can't be read."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def loss_name(func: Callable[..., Any]) -> str:
    """The public name of a loss function, such as ``nll_loss``."""
    return _RENAMED.get(func.__name__, func.__name__)


def bind_loss(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a loss call by name, with ``input`` and ``target`` for every loss."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return {_RENAMED.get(key, key): value for key, value in bound.arguments.items()}


def facts_of(tensor: torch.Tensor, class_dim: int) -> Facts:
    """Summarise a tensor: all of it where small, evenly spaced rows of it where large."""
    shape = tuple(tensor.shape)
    dims: tuple[int, ...] = ()
    log_dims: tuple[int, ...] = ()
    floating = tensor.is_floating_point()
    if floating and 1 <= tensor.ndim <= 4 and tensor.numel() <= 2**21:
        full = tensor.detach().float()
        dims = tuple(d for d in range(tensor.ndim) if shape[d] > 1 and _all_near_one(full, d))
        if bool((full <= 0).all()):
            log_dims = tuple(d for d in range(tensor.ndim) if shape[d] > 1 and _all_near_one(full.exp(), d))
    rows = tensor.detach()
    if tensor.ndim > 1:
        rows = rows.movedim(class_dim, -1).reshape(-1, shape[class_dim])
    else:
        rows = rows.reshape(-1, 1)
    if len(rows) > _SAMPLED_ROWS:
        picked = torch.linspace(0, len(rows) - 1, _SAMPLED_ROWS, device=rows.device).long()
        rows = rows[picked]
    rows = rows.float()
    sums, lses = rows.sum(-1), rows.logsumexp(-1)
    return Facts(
        shape=shape,
        dtype=str(tensor.dtype).removeprefix("torch."),
        minimum=float(rows.min()),
        maximum=float(rows.max()),
        row_sums=(float(sums.min()), float(sums.max())),
        row_logsumexps=(float(lses.min()), float(lses.max())),
        rows=len(rows),
        normalised_dims=dims,
        log_normalised_dims=log_dims,
        mean=float(rows.mean()),
        std=float(rows.std(correction=0)),
        integral=bool((rows == rows.round()).all()),
        at_ends=float(((rows == rows.min()) | (rows == rows.max())).float().mean()),
    )


def _one_by_one(weights: Any) -> tuple[float, ...] | None:
    if not isinstance(weights, torch.Tensor) or weights.ndim > 1 or not 0 < weights.numel() <= _MOST_WEIGHTS:
        return None
    return tuple(weights.detach().float().reshape(-1).tolist())


def _all_near_one(values: torch.Tensor, dim: int) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(dim) - 1).abs() < 1e-3).all())


def _target_facts(value: Any, class_dim: int) -> Facts | None:
    if not isinstance(value, torch.Tensor) or not value.numel() or not value.ndim or value.is_complex():
        return None
    return facts_of(value, min(class_dim, value.ndim - 1))
