"""Whether weights are as an initialiser left them, read from their values alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch

from debugkit.tracing.source import is_library_class
from debugkit.weights.input_embedding import is_trained
from debugkit.weights.spectrum import uniform_edge
from debugkit.weights.table_origin import origin_of

State = Literal["fresh", "trained", "unknown"]

_FEWEST = 8
_MOST_MATRICES = 24
_MOST_VALUES = 2**20
_SIGMAS = 4.0
_OTHER_SCALE = 1.6
_NORMAL, _UNIFORM, _CUT_OFF = 3.0, 1.8, 2.367  # the last: normal, cut off at two standard deviations
_KURTOSES = (_NORMAL, _UNIFORM, _CUT_OFF)


@torch.no_grad()
def head_state(model: torch.nn.Module, names: Iterable[str]) -> State:
    """Whether the parameters that give a model's outputs are fresh.

    A head is fresh where its weights are independent draws, and it has a bias of zeros or nothing else in the model
    was trained. It is trained where its weights have structure.

    Args:
        model: the model.
        names: the head's parameters.
    """
    parameters = [model.get_parameter(name) for name in names]
    matrices = [p for p in parameters if p.ndim >= 2 and p.numel()]
    biases = [p for p in parameters if p.ndim == 1]
    if not matrices or any(p.is_meta or not p.is_floating_point() for p in parameters):
        return "unknown"
    if not all(is_noise(matrix) for matrix in matrices):
        return "trained"
    if (biases and not any(bool(bias.any()) for bias in biases)) or is_untouched(model):
        return "fresh"
    return "unknown"


@torch.no_grad()
def model_is_fresh(model: torch.nn.Module) -> bool:
    """Whether no weight shows that the model was trained: scales all equal, counters at 0, matrices pure noise."""
    if any(name.endswith("num_batches_tracked") and int(b) > 0 for name, b in model.named_buffers()):
        return False
    matrices = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            return False
        if parameter.ndim == 1 and name.rpartition(".")[2] == "weight" and not _is_constant(parameter):
            return False
        if parameter.ndim >= 2 and parameter.numel():
            matrices.append(parameter)
    step = -(-len(matrices) // _MOST_MATRICES) or 1
    return bool(matrices) and all(is_noise(matrix) for matrix in matrices[::step])


@torch.no_grad()
def is_untouched(model: torch.nn.Module) -> bool:
    """Whether not a single step can have been taken: beside :func:`model_is_fresh`, no bias has left its start.

    A bias starts constant, or within the bounds of torch's own initialiser, as do the weights beside it unless
    they were drawn anew on another scale.
    """
    for module in model.modules():
        weight, bias = (_parameter(module, name) for name in ("weight", "bias"))
        if bias is None or weight is None or not weight.is_floating_point() or not weight.numel():
            continue
        if _is_constant(bias):
            continue
        if weight.ndim < 2:
            return False
        bound = weight[0].numel() ** -0.5
        scale = float(weight.square().mean()) ** 0.5 * 3**0.5 / bound
        usual = 1 / _OTHER_SCALE < scale < _OTHER_SCALE
        largest = max(float(bias.abs().max()), float(weight.abs().max()) if usual else 0.0)
        if largest > bound * (1 + 1e-3):
            return False
    return model_is_fresh(model)


@torch.no_grad()
def is_noise(weight: torch.Tensor) -> bool:
    """Whether a weight looks like independent draws around 0, or like a constant fill.

    Moments and spectrum where it is large enough, the moments of all values within four standard errors else.
    """
    rows = weight.detach().reshape(weight.shape[0], -1).float()
    if rows.shape[0] < rows.shape[1]:
        rows = rows.T
    if _is_constant(rows):
        return True
    if rows.numel() > _MOST_VALUES:
        rows = rows[:: -(-rows.numel() // _MOST_VALUES)]
    if is_trained(rows):
        return False
    if rows.shape[0] >= 32 and rows.shape[1] >= _FEWEST and rows.shape[1] <= 1024:
        return origin_of(rows) == "random"
    values = rows.flatten().double()
    count, variance = len(values), float(values.square().mean())
    kurtosis = float(values.pow(4).mean()) / variance**2
    centred = abs(float(values.mean())) < _SIGMAS * (variance / count) ** 0.5
    likely = min(_KURTOSES, key=lambda k: abs(kurtosis - k) / _error(k, count))
    edge = uniform_edge(float(values.abs().max()), variance**0.5)
    sharp = likely != _UNIFORM or edge < 1 + 2 * count**-0.5
    return centred and sharp and abs(kurtosis - likely) < _SIGMAS * _error(likely, count)


def _error(kurtosis: float, count: int) -> float:
    """The standard error of the kurtosis of independent values."""
    return float(({_NORMAL: 24.0, _UNIFORM: 0.8}.get(kurtosis, 6.0) / count) ** 0.5)


def _is_constant(values: torch.Tensor) -> bool:
    return not values.numel() or bool((values == values.flatten()[0]).all())


@torch.no_grad()
def is_drawn_by_library(model: torch.nn.Module, names: Iterable[str]) -> bool:
    """Whether parameters are as large as the library that the model comes from makes them.

    Writes to the model's weights: call it where they are put back.

    Args:
        model: the model.
        names: the parameters.
    """
    judged = False
    for name in names:
        parameter = model.get_parameter(name)
        if parameter.ndim < 2:
            continue
        path = name.split(".")[:-1]
        chain = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1)]
        before = float(parameter.float().std(correction=0))
        if not any(
            _draws_alike(owner, chain[: place + 1], parameter, before)
            for place, owner in enumerate(chain)
            if callable(getattr(owner, "_init_weights", None))
        ):
            return False
        judged = True
    return judged


def _draws_alike(owner: Any, inside: list[Any], parameter: torch.nn.Parameter, before: float) -> bool:
    """Whether a library's module initialises what lies inside it with the spread that a parameter had."""
    if not is_library_class(type(owner)) or _is_retuned(owner):
        return False
    for module in inside:
        owner._init_weights(module)
    after = float(parameter.float().std(correction=0))
    room: float = 0.2 + _SIGMAS * float(parameter.numel()) ** -0.5
    return bool(abs(before - after) <= room * max(before, after))


def _is_retuned(owner: Any) -> bool:
    """Whether a config asks for another initialisation than its class does, such as a wider ``initializer_range``."""
    config: Any = getattr(owner, "config", None)
    try:
        usual = type(config)()
    except Exception:  # a foreign class may refuse in any way
        return False
    names = [name for name in getattr(config, "__dict__", {}) if name.startswith("init")]
    return any(getattr(usual, name, None) != getattr(config, name) for name in names)


def _parameter(module: torch.nn.Module, name: str) -> torch.nn.Parameter | None:
    value = getattr(module, name, None)
    return value if isinstance(value, torch.nn.Parameter) else None
